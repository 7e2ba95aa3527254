//! The witness: a vCPU that judges another's byte by what it sees of that vCPU itself, and asks no host.
//!
//! The other one stores the clock in its report, again and again, for as long as it runs. Between two such signs of life
//! that are far apart it stood still; so its byte should have been set then, and clear before and after. Whoever looks at
//! both, time after time, finds out how often the byte was right, and how late it was.
//!
//! ```text
//! sign of life   |||||||||                  |||||||||||||||
//! byte                     ''''''''''''''''''''
//!                        ^ ^                ^ ^
//!                 stands still, out latency; runs again, in latency
//! ```
//!
//! What it cannot know: a vCPU that stands still in its monitor or in a halt is not preempted. Hence the other one says
//! before that it will be away ([`AWAY`]), and then nothing is judged until it is back. And the witness may lose its own CPU:
//! what falls into such an absence is not judged either.
//!
//! All times are cycles of a clock that both share. Where they do not, on a host whose processors' counters differ, the least
//! time from a sign to the look that finds it is no small one, or a sign seems to come from the future; then nothing of this
//! means anything, and the report says so.

use core::sync::atomic::Ordering;

use protocol::report::{LAG_BIAS, VcpuReport, Wrong, add, raise};

/// In place of a sign of life: the vCPU is in its monitor, or halts, or is about to.
pub const AWAY: u64 = 0;

/// What counts as what.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From here on a vCPU that gave no sign stood still: longer than any interrupt takes.
    pub stall: u64,
    /// Up to here it is sure to have run on.
    pub hitch: u64,
    /// From here on between two looks, the witness itself was absent.
    pub absence: u64,
}

/// See the module. `sight` and its histogram belong to the witness; so does the histogram of the vCPU that is watched.
#[derive(Debug)]
pub struct Witness<'r> {
    limits: Limits,
    own: &'r VcpuReport,
    watched: &'r VcpuReport,
    /// When the last look was over.
    looked: Option<u64>,
    sign: Sign,
    least_lag: i64,
    byte: Byte,
    /// The byte was first seen set at this look since the last sign of life.
    set_since_sign: Option<u64>,
    /// The first sign of life after a stall that the byte told of, until the byte is seen clear.
    returned: Option<u64>,
}

/// The last sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sign {
    /// None is known.
    Unknown,
    /// This one was there when the witness began to look: nobody knows what has been since.
    Found(u64),
    /// This one was seen to be given.
    Seen(u64),
}

/// What is known of the byte, since it was last seen to change.
#[derive(Clone, Copy, Debug, Default)]
struct Byte {
    /// Since when it is seen set (a look), or was.
    set_at: Option<u64>,
    /// Since when it is clear again.
    clear_at: Option<u64>,
    /// The longest that the vCPU gave no sign meanwhile.
    longest_gap: u64,
    /// For how long the vCPU is known to have run on meanwhile.
    ran: u64,
}

impl Byte {
    fn is_set(self) -> bool {
        self.set_at.is_some() && self.clear_at.is_none()
    }
}

impl<'r> Witness<'r> {
    /// Nothing has been seen.
    pub fn new(limits: Limits, own: &'r VcpuReport, watched: &'r VcpuReport) -> Self {
        Self {
            limits,
            own,
            watched,
            looked: None,
            sign: Sign::Unknown,
            least_lag: i64::MAX,
            byte: Byte::default(),
            set_since_sign: None,
            returned: None,
        }
    }

    /// A look: at the clock, at the byte, at the last sign of life, and at the clock once more, in this order.
    #[inline]
    pub fn look(&mut self, now: u64, is_set: bool, sign: u64, after: u64) {
        let sight = &self.own.sight;
        let since = after.wrapping_sub(self.looked.replace(after).unwrap_or(after));
        add(&sight.looks, 1);
        if since < self.limits.absence {
            add(&sight.observed, since);
        } else {
            add(&sight.absences, 1);
            // Nothing has happened meanwhile, if nothing has changed.
            if self.sign != Sign::Seen(sign) || is_set != self.byte.is_set() {
                self.forget();
            }
        }
        match self.sign {
            _ if sign == AWAY => self.forget(),
            Sign::Unknown => self.sign = Sign::Found(sign),
            Sign::Found(last) if last == sign => {}
            Sign::Found(_) => {
                self.sign = Sign::Seen(sign);
                self.set_since_sign = is_set.then_some(now);
                self.byte.set_at = self.set_since_sign;
            }
            Sign::Seen(last) => {
                self.see_byte(now, is_set);
                if last != sign {
                    self.see_lag(after.wrapping_sub(sign).cast_signed());
                    self.see_sign(last, sign, is_set);
                    self.sign = Sign::Seen(sign);
                    self.set_since_sign = is_set.then_some(now);
                } else if is_set && self.set_since_sign.is_none() {
                    self.set_since_sign = Some(now);
                }
            }
        }
    }

    /// What is taken for one clock are two: how far they are apart at most shows in the least lag of all.
    fn see_lag(&mut self, lag: i64) {
        if lag < self.least_lag {
            self.least_lag = lag;
            let biased = lag.cast_unsigned().wrapping_add(LAG_BIAS);
            self.own.sight.least_lag.store(biased, Ordering::Relaxed);
        }
    }

    /// What was going on is not judged.
    fn forget(&mut self) {
        self.sign = Sign::Unknown;
        self.byte = Byte::default();
        self.set_since_sign = None;
        self.returned = None;
    }

    fn see_byte(&mut self, now: u64, is_set: bool) {
        match (is_set, self.byte.set_at, self.byte.clear_at) {
            // Set, after it was clear; what was before has been judged, or never will be
            (true, None, _) | (true, Some(_), Some(_)) => {
                self.byte = Byte { set_at: Some(now), ..Byte::default() };
            }
            (false, Some(_), None) => {
                self.byte.clear_at = Some(now);
                if let Some(first) = self.returned.take() {
                    self.watched.record_wait(now.saturating_sub(first));
                }
            }
            _ => {}
        }
    }

    /// The vCPU gave a sign at `sign`, and the one before at `last`.
    fn see_sign(&mut self, last: u64, sign: u64, is_set: bool) {
        let sight = &self.own.sight;
        let gap = sign.wrapping_sub(last);
        self.byte.longest_gap = self.byte.longest_gap.max(gap);
        if gap >= self.limits.stall {
            self.see_stall(last, sign, is_set);
        } else if let (true, Some(set_at)) = (is_set, self.byte.set_at) {
            let ran = sign.saturating_sub(last.max(set_at));
            self.byte.ran += ran;
            add(&sight.wrongly_set.total, ran);
            raise(&sight.wrongly_set.longest, self.byte.ran);
        }
        // Judged at the first sign after the byte is clear: until then it may have stood still.
        if self.byte.clear_at.is_some() {
            add(&sight.falsely_set, u64::from(self.byte.longest_gap < self.limits.hitch));
            self.byte = Byte::default();
        }
    }

    fn see_stall(&mut self, last: u64, sign: u64, is_set: bool) {
        let sight = &self.own.sight;
        let gap = sign.wrapping_sub(last);
        add(&sight.stalls, 1);
        add(&sight.stalled, gap);
        let set_at = self.set_since_sign.or(self.byte.clear_at.and(self.byte.set_at));
        let late = set_at.map(|set_at| set_at.saturating_sub(last));
        match late {
            Some(late) => self.own.record_wait(late),
            None => add(&sight.unmarked, 1),
        }
        wrong(&sight.wrongly_clear, late.unwrap_or(gap));
        self.byte.ran = 0;
        match self.byte.clear_at {
            Some(clear_at) => self.watched.record_wait(clear_at.saturating_sub(sign)),
            None => self.returned = is_set.then_some(sign),
        }
    }
}

fn wrong(direction: &Wrong, stretch: u64) {
    add(&direction.total, stretch);
    raise(&direction.longest, stretch);
}

/// What the vCPU that is watched does at each turn, given the clock.
#[inline]
pub fn give_sign(report: &VcpuReport, now: u64) {
    report.beat.store(now, Ordering::Release);
}

#[cfg(test)]
#[cfg(not(modelled))]
mod tests {
    use protocol::report::Sight;

    use super::*;

    const LIMITS: Limits = Limits { stall: 100, hitch: 10, absence: 50 };

    /// What comes of looks at every fifth cycle, the byte and the signs of life being these functions of the clock.
    fn seen(to: u64, byte: impl Fn(u64) -> bool, sign: impl Fn(u64) -> u64) -> (VcpuReport, VcpuReport) {
        let (own, watched) = (VcpuReport::new(), VcpuReport::new());
        let mut witness = Witness::new(LIMITS, &own, &watched);
        for now in (1000..to).step_by(5) {
            witness.look(now, byte(now), sign(now), now);
        }
        (own, watched)
    }

    /// Signs of life at each cycle, but for these times.
    fn standing_still(now: u64, from: u64, to: u64) -> u64 {
        if (from..to).contains(&now) { from } else { now }
    }

    fn counts(sight: &Sight) -> (u64, u64, u64) {
        let read = |counter: &core::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        (read(&sight.stalls), read(&sight.unmarked), read(&sight.falsely_set))
    }

    fn waits(report: &VcpuReport) -> (u32, u64) {
        let count = report.waits.iter().map(|count| count.load(Ordering::Relaxed)).sum();
        (count, report.longest_wait.load(Ordering::Relaxed))
    }

    fn totals(wrong: &Wrong) -> (u64, u64) {
        (wrong.total.load(Ordering::Relaxed), wrong.longest.load(Ordering::Relaxed))
    }

    #[test]
    fn byte_that_follows_a_stall_is_late_by_what_it_was() {
        let (own, watched) =
            seen(5000, |now| (2020..2995).contains(&now), |now| standing_still(now, 2000, 3000));
        assert_eq!(counts(&own.sight), (1, 0, 0));
        assert_eq!(waits(&own), (1, 20));
        assert_eq!(waits(&watched), (1, 0));
        assert_eq!(totals(&own.sight.wrongly_clear), (20, 20));
        assert_eq!(totals(&own.sight.wrongly_set), (0, 0));
        assert_eq!(own.sight.stalled.load(Ordering::Relaxed), 1000);
        assert_eq!(own.sight.observed.load(Ordering::Relaxed), 3995);
    }

    #[test]
    fn byte_that_stays_set_after_a_stall_is_wrong_as_long_as_the_vcpu_runs() {
        let (own, watched) =
            seen(5000, |now| (2000..3060).contains(&now), |now| standing_still(now, 2000, 3000));
        assert_eq!(counts(&own.sight), (1, 0, 0));
        assert_eq!((waits(&own), waits(&watched)), ((1, 0), (1, 60)));
        assert_eq!(totals(&own.sight.wrongly_set), (55, 55));
    }

    #[test]
    fn stall_that_the_byte_never_tells_of_is_missed_for_all_of_it() {
        let (own, watched) = seen(5000, |_| false, |now| standing_still(now, 2000, 3000));
        assert_eq!(counts(&own.sight), (1, 1, 0));
        assert_eq!((waits(&own), waits(&watched)), ((0, 0), (0, 0)));
        assert_eq!(totals(&own.sight.wrongly_clear), (1000, 1000));
    }

    #[test]
    fn byte_that_is_set_while_the_vcpu_runs_on_is_false_and_a_hitch_excuses_it() {
        let set = |now| (2000..2200).contains(&now);
        let (own, _) = seen(5000, set, |now| now);
        assert_eq!(counts(&own.sight), (0, 0, 1));
        assert_eq!(totals(&own.sight.wrongly_set), (195, 195));
        let (own, _) = seen(5000, set, |now| standing_still(now, 2180, 2230));
        assert_eq!(counts(&own.sight), (0, 0, 0));
    }

    #[test]
    fn byte_that_is_set_for_ever_is_wrong_whenever_the_vcpu_runs_and_at_no_other_time() {
        let (own, _) = seen(5000, |_| true, |now| standing_still(now, 2000, 3000));
        assert_eq!(counts(&own.sight), (1, 0, 0));
        let (total, longest) = totals(&own.sight.wrongly_set);
        assert_eq!((total, longest), (2990, 1995));
    }

    #[test]
    fn clocks_that_differ_show_in_the_least_lag() {
        let lag =
            |sight: &Sight| sight.least_lag.load(Ordering::Relaxed).wrapping_sub(LAG_BIAS).cast_signed();
        let (own, _) = seen(2000, |_| false, |now| now - 3);
        assert_eq!(lag(&own.sight), 3);
        let (own, _) = seen(2000, |_| false, |now| now - 400);
        assert_eq!(lag(&own.sight), 400);
        let (own, _) = seen(2000, |_| false, |now| now + 400);
        assert_eq!(lag(&own.sight), -400);
    }

    #[test]
    fn vcpu_that_is_away_is_not_judged_nor_what_the_witness_did_not_see() {
        let away = |now| if (2000..3000).contains(&now) { AWAY } else { now };
        let (own, _) = seen(5000, |now| (2500..2600).contains(&now), away);
        assert_eq!(counts(&own.sight), (0, 0, 0));
        let (own, watched) = (VcpuReport::new(), VcpuReport::new());
        let mut witness = Witness::new(LIMITS, &own, &watched);
        for now in (1000..2000).step_by(5).chain((3000..4000).step_by(5)) {
            witness.look(now, false, now, now);
        }
        assert_eq!(counts(&own.sight), (0, 0, 0));
        assert_eq!(own.sight.absences.load(Ordering::Relaxed), 1);
        assert_eq!(own.sight.observed.load(Ordering::Relaxed), 1990);
    }

    /// The witness is absent from `from` to `to`, and the vCPU stands still from 2000 to 3000.
    fn seen_but_for(from: u64, to: u64) -> VcpuReport {
        let (own, watched) = (VcpuReport::new(), VcpuReport::new());
        let mut witness = Witness::new(LIMITS, &own, &watched);
        for now in (1000..from).step_by(5).chain((to..5000).step_by(5)) {
            witness.look(now, (2020..2995).contains(&now), standing_still(now, 2000, 3000), now);
        }
        own
    }

    /// The byte is read, then the witness loses its CPU, then it reads the sign: the two do not belong together.
    #[test]
    fn look_that_took_too_long_is_an_absence() {
        let (own, watched) = (VcpuReport::new(), VcpuReport::new());
        let mut witness = Witness::new(LIMITS, &own, &watched);
        for now in (1000..2000).step_by(5) {
            witness.look(now, false, now, now);
        }
        witness.look(2000, true, 2150, 2155);
        for now in (2160..3000).step_by(5) {
            witness.look(now, now < 2900, 2150, now);
        }
        assert_eq!((counts(&own.sight), waits(&watched)), ((0, 0, 0), (0, 0)));
        assert_eq!(own.sight.absences.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn absence_in_the_midst_of_a_stall_hides_nothing_and_one_at_its_ends_hides_it() {
        let own = seen_but_for(2400, 2800);
        assert_eq!((counts(&own.sight), waits(&own)), ((1, 0, 0), (1, 20)));
        for (from, to) in [(1900, 2500), (2010, 2500), (2500, 3100), (2500, 2997)] {
            let own = seen_but_for(from, to);
            assert_eq!((counts(&own.sight), waits(&own)), ((0, 0, 0), (0, 0)), "{from}");
        }
    }
}
