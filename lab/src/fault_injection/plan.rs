//! The plan of one vCPU's faults: what the guest's byte says, given what it should say.
//!
//! It knows no thread and no clock: it is told the time. What goes wrong is decided by the seed alone, set by set, so a run
//! with the same seed drops the same ones.

use fastrand::Rng;
use protocol::VcpuId;

use super::Faults;

/// How long a byte that was set for no reason stays so, if nothing else happens (ns).
pub(super) const FALSE_NS: u64 = 500_000;

/// What went wrong, how often.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct FaultCounts {
    /// Times that the byte should have been set.
    pub sets: u64,
    /// Of these, not set.
    pub dropped: u64,
    /// Of these, set late.
    pub delayed: u64,
    /// Times that it was set for no reason.
    pub falsely_set: u64,
    /// Times that it should have been cleared, and was not.
    pub stuck: u64,
}

impl FaultCounts {
    /// What was added since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            sets: self.sets.saturating_sub(earlier.sets),
            dropped: self.dropped.saturating_sub(earlier.dropped),
            delayed: self.delayed.saturating_sub(earlier.delayed),
            falsely_set: self.falsely_set.saturating_sub(earlier.falsely_set),
            stuck: self.stuck.saturating_sub(earlier.stuck),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Plan {
    faults: Faults,
    /// Which sets are dropped.
    drops: Rng,
    /// When it lies.
    lies: Rng,
    should: bool,
    says: bool,
    /// When a delayed set is due.
    due: Option<u64>,
    /// When it next lies, and until when it now does.
    next_lie: Option<u64>,
    lies_until: Option<u64>,
    counts: FaultCounts,
}

impl Plan {
    pub(super) fn new(faults: Faults, vcpu: VcpuId) -> Self {
        let stream = |number: u64| Rng::with_seed(faults.seed ^ (2 * vcpu.index() as u64 + number) << 48);
        Self {
            faults,
            drops: stream(1),
            lies: stream(2),
            should: false,
            says: false,
            due: None,
            next_lie: None,
            lies_until: None,
            counts: FaultCounts::default(),
        }
    }

    /// What the byte is to say at `now` (ns), when it should say `should`.
    pub(super) fn says(&mut self, now: u64, should: bool) -> bool {
        match (self.should, should) {
            (false, true) => self.begin(now),
            (true, false) => self.end(),
            _ => {}
        }
        self.should = should;
        if self.due.is_some_and(|due| due <= now) {
            self.due = None;
            self.says = true;
        }
        self.lie(now);
        self.says
    }

    fn begin(&mut self, now: u64) {
        self.counts.sets += 1;
        self.lies_until = None;
        if self.drops.f64() < self.faults.drop {
            self.counts.dropped += 1;
        } else if self.faults.delay_us > 0 {
            self.counts.delayed += 1;
            self.due = Some(now + 1_000 * u64::from(self.faults.delay_us));
        } else {
            self.says = true;
        }
    }

    fn end(&mut self) {
        self.due = None;
        self.clear();
    }

    fn clear(&mut self) {
        if self.faults.stick && self.says {
            self.counts.stuck += 1;
        } else {
            self.says = false;
        }
    }

    fn lie(&mut self, now: u64) {
        if self.faults.false_hz <= 0.0 {
            return;
        }
        if self.lies_until.is_some_and(|until| until <= now) {
            self.lies_until = None;
            self.clear();
        }
        let next = match self.next_lie {
            Some(next) => next,
            None => self.plan_lie(now),
        };
        if next <= now {
            if !self.should && !self.says {
                self.counts.falsely_set += 1;
                self.says = true;
                self.lies_until = Some(now + FALSE_NS);
            }
            self.plan_lie(now);
        }
    }

    /// The times between two lies are those of a Poisson process.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few seconds, in ns")]
    fn plan_lie(&mut self, now: u64) -> u64 {
        let between = -(1.0 - self.lies.f64()).ln() / self.faults.false_hz;
        let next = now + FALSE_NS + (between * 1e9) as u64;
        self.next_lie = Some(next);
        next
    }

    pub(super) fn counts(&self) -> FaultCounts {
        self.counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A byte that should be set in every other millisecond, looked at each 10 us, for a second.
    fn play(faults: &str) -> (FaultCounts, Vec<bool>) {
        let mut plan = Plan::new(faults.parse().unwrap(), VcpuId::BOOT);
        let says = (0..100_000_u64).map(|look| plan.says(look * 10_000, look / 100 % 2 == 1)).collect();
        (plan.counts(), says)
    }

    #[test]
    fn without_faults_it_says_what_it_should() {
        let (counts, says) = play("seed=1");
        assert_eq!(counts, FaultCounts { sets: 500, ..FaultCounts::default() });
        assert!(says.iter().enumerate().all(|(look, says)| *says == (look / 100 % 2 == 1)));
    }

    #[test]
    fn share_of_sets_is_dropped_the_same_ones_for_the_same_seed() {
        let (counts, says) = play("drop=0.2,seed=5");
        assert!((70..130).contains(&counts.dropped), "{counts:?}");
        let set = says.chunks(200).filter(|period| period.iter().any(|says| *says)).count() as u64;
        assert_eq!(set, counts.sets - counts.dropped);
        assert_eq!(play("drop=0.2,seed=5").1, says);
        assert_ne!(play("drop=0.2,seed=6").1, says);
    }

    #[test]
    fn delayed_set_comes_so_much_later_or_not_at_all() {
        let (counts, says) = play("delay_us=300");
        assert_eq!((counts.delayed, counts.sets), (500, 500));
        assert!(says.chunks(200).all(|period| period.iter().position(|says| *says) == Some(130)));
        assert!(!play("delay_us=1500").1.contains(&true));
    }

    #[test]
    fn lies_come_at_their_rate_and_last_half_a_millisecond() {
        let mut plan = Plan::new("false_hz=100".parse().unwrap(), VcpuId::BOOT);
        let says: Vec<bool> = (0..1_000_000_u64).map(|look| plan.says(look * 10_000, false)).collect();
        let begun = says.windows(2).filter(|pair| !pair[0] && pair[1]).count() as u64;
        assert_eq!(begun, plan.counts().falsely_set);
        assert!((850..1050).contains(&begun), "{begun}");
        let set = says.iter().filter(|says| **says).count() as u64;
        assert!(set.abs_diff(begun * FALSE_NS / 10_000) <= begun, "{set}");
    }

    #[test]
    fn byte_that_sticks_is_never_clear_again() {
        let (counts, says) = play("stick");
        assert!(says[100..].iter().all(|says| *says));
        assert_eq!(counts.stuck, 499);
    }
}
