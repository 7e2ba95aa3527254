//! Judgement: what was seen of a byte, against what was true. Pure.

use serde::Serialize;

use super::looks::Looks;
use host::perf::{Switch, SwitchKind};
use vmm::hooks::Descheduled;

/// The kernel stamps its record of a switch a moment after it has begun: a byte may be right by so much earlier (ns).
const SLACK_NS: u64 = 3_000;

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Judgement {
    /// How long was looked at, absences left out (ns).
    pub observed_ns: u64,
    /// Of that, so long the vCPU ran (ns).
    pub running_ns: u64,
    /// Preemptions, and whether the byte was set for them.
    pub outs: Edge,
    /// Returns from a preemption, and whether the byte was cleared for them.
    pub ins: Edge,
    /// Times that the byte was set although nobody had preempted the vCPU.
    pub falsely_set: u64,
    /// Time for which the byte was set, and the vCPU was not preempted.
    pub wrongly_set: Direction,
    /// Time for which the vCPU was preempted, and the byte was clear.
    pub wrongly_clear: Direction,
}

/// One kind of change that the byte should follow.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Edge {
    /// How often it happened.
    pub happened: u64,
    /// Of these, so often the byte did not follow before the next change.
    pub missed: u64,
    /// Of these, so often nobody looked.
    pub unobserved: u64,
    /// From the kernel's record of the switch to the byte seen changed (ns); less than 0 where the byte was first. In order.
    #[serde(skip)]
    pub latencies_ns: Vec<i64>,
}

impl Edge {
    /// So much latency (ns) a share of all do not exceed; `None` where there are none.
    pub fn quantile_ns(&self, share: f64) -> Option<i64> {
        let last = self.latencies_ns.len().checked_sub(1)?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an index of a vector that exists"
        )]
        let index = (self.latencies_ns.len() as f64 * share).ceil() as usize;
        self.latencies_ns.get(index.saturating_sub(1).min(last)).copied()
    }
}

/// How wrong it was in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Direction {
    /// All told (ns).
    pub total_ns: u64,
    /// The longest single stretch (ns).
    pub longest_ns: u64,
}

impl Direction {
    fn add(&mut self, stretch_ns: u64) {
        self.total_ns += stretch_ns;
        self.longest_ns = self.longest_ns.max(stretch_ns);
    }
}

/// A time in which the byte should say one thing.
#[derive(Clone, Copy, Debug)]
struct Span {
    from_ns: u64,
    to_ns: u64,
    should: bool,
    is_running: bool,
}

/// Judges `looks` by the `switches` of the vCPU's thread and the times for which it was held. What was before the first
/// switch is not known, and not judged.
pub fn judge(switches: &[Switch], holds: &[Descheduled], looks: &Looks) -> Judgement {
    let spans = spans(switches, holds, looks);
    let mut judgement = Judgement::default();
    for (index, span) in spans.iter().enumerate() {
        let before = index.checked_sub(1).and_then(|before| spans.get(before));
        if before.is_some_and(|before| before.should != span.should) {
            let edge = if span.should { &mut judgement.outs } else { &mut judgement.ins };
            follow(edge, *span, looks);
        }
    }
    judgement.outs.latencies_ns.sort_unstable();
    judgement.ins.latencies_ns.sort_unstable();
    judgement.falsely_set = falsely_set(&spans, looks);
    measure(&mut judgement, &spans, looks);
    judgement
}

/// The truth as spans that follow each other, within what was looked at.
fn spans(switches: &[Switch], holds: &[Descheduled], looks: &Looks) -> Vec<Span> {
    let mut marks: Vec<(u64, Mark)> =
        switches.iter().map(|switch| (switch.at_ns, Mark::Switch(switch.kind))).collect();
    for held in holds {
        marks.push((held.from_ns, Mark::Descheduled(true)));
        marks.push((held.to_ns, Mark::Descheduled(false)));
    }
    marks.sort_by_key(|(at_ns, _)| *at_ns);
    let (mut last, mut is_held) = (None, false);
    let mut spans: Vec<Span> = Vec::with_capacity(marks.len());
    for (at_ns, mark) in marks {
        match mark {
            Mark::Switch(kind) => last = Some(kind),
            Mark::Descheduled(held) => is_held = held,
        }
        if let Some(span) = spans.last_mut() {
            span.to_ns = at_ns.min(looks.to_ns);
        }
        let Some(last) = last.filter(|_| at_ns >= looks.from_ns && at_ns < looks.to_ns) else { continue };
        let should = is_held || last == SwitchKind::Preempted;
        let is_running = !is_held && last == SwitchKind::In;
        spans.push(Span { from_ns: at_ns, to_ns: looks.to_ns, should, is_running });
    }
    // Spans in which the byte should stay as it was are one, but for who runs.
    spans.dedup_by(|next, span| {
        let is_same = next.should == span.should && next.is_running == span.is_running;
        if is_same {
            span.to_ns = next.to_ns;
        }
        is_same
    });
    spans
}

#[derive(Clone, Copy, Debug)]
enum Mark {
    Switch(SwitchKind),
    Descheduled(bool),
}

/// Whether the byte followed the change with which `span` begins.
fn follow(edge: &mut Edge, span: Span, looks: &Looks) {
    edge.happened += 1;
    let earliest = span.from_ns.saturating_sub(SLACK_NS);
    if is_set_at(looks, earliest) == span.should {
        return; // it was so before: nothing is to be learned
    }
    let next = looks.changes.partition_point(|change| change.at_ns < earliest);
    let followed = looks.changes.get(next..).unwrap_or_default().iter();
    match followed.take_while(|change| change.at_ns <= span.to_ns).find(|change| change.is_set == span.should)
    {
        Some(change) => edge.latencies_ns.push(change.at_ns.cast_signed() - span.from_ns.cast_signed()),
        None if is_blind(looks, span) => edge.unobserved += 1,
        None => edge.missed += 1,
    }
}

fn is_set_at(looks: &Looks, at_ns: u64) -> bool {
    let after = looks.changes.partition_point(|change| change.at_ns <= at_ns);
    after
        .checked_sub(1)
        .and_then(|last| looks.changes.get(last))
        .map_or(looks.began_set, |change| change.is_set)
}

/// Whether nobody looked for most of `span` at a stretch. One look in its midst is enough: a byte that has followed stays
/// so until the span is over.
fn is_blind(looks: &Looks, span: Span) -> bool {
    let first = looks.blind.partition_point(|(_, to)| *to <= span.from_ns);
    let within =
        looks.blind.get(first..).unwrap_or_default().iter().take_while(|(from, _)| *from < span.to_ns);
    let overlap = |(from, to): &(u64, u64)| (*to).min(span.to_ns) - (*from).max(span.from_ns);
    2 * within.map(overlap).max().unwrap_or(0) > span.to_ns - span.from_ns
}

/// Changes to set that begin and end within a span in which it should be clear.
fn falsely_set(spans: &[Span], looks: &Looks) -> u64 {
    let mut count = 0;
    for change in looks.changes.iter().filter(|change| change.is_set) {
        let next = spans.partition_point(|span| span.from_ns <= change.at_ns + SLACK_NS);
        let span = next.checked_sub(1).and_then(|index| spans.get(index));
        count += u64::from(span.is_some_and(|span| !span.should));
    }
    count
}

/// Adds up how long the byte was wrong. Times in which nobody looked are left out.
fn measure(judgement: &mut Judgement, spans: &[Span], looks: &Looks) {
    let (mut changes, mut blind) = (looks.changes.iter().peekable(), looks.blind.iter().peekable());
    let mut is_set = looks.began_set;
    // How long it has been wrong in the one direction (set) or the other.
    let mut wrong: Option<(bool, u64)> = None;
    for span in spans {
        let mut at = span.from_ns;
        while at < span.to_ns {
            while let Some(change) = changes.next_if(|change| change.at_ns <= at) {
                is_set = change.is_set;
            }
            while blind.next_if(|(_, to)| *to <= at).is_some() {}
            let absence = blind.peek().copied().copied();
            let is_absent = absence.is_some_and(|(from, _)| from <= at);
            let next_absence = absence.map_or(u64::MAX, |(from, to)| if is_absent { to } else { from });
            let next_change = changes.peek().map_or(u64::MAX, |change| change.at_ns);
            let next = span.to_ns.min(next_change).min(next_absence);
            let length = next - at;
            at = next;
            if is_absent {
                continue;
            }
            judgement.observed_ns += length;
            judgement.running_ns += if span.is_running { length } else { 0 };
            let is_wrong = (is_set != span.should).then_some(is_set);
            if wrong.map(|(direction, _)| direction) != is_wrong {
                close(judgement, wrong);
                wrong = is_wrong.map(|direction| (direction, 0));
            }
            if let Some((_, stretch)) = &mut wrong {
                *stretch += length;
            }
        }
    }
    close(judgement, wrong);
}

fn close(judgement: &mut Judgement, wrong: Option<(bool, u64)>) {
    match wrong {
        Some((true, stretch)) => judgement.wrongly_set.add(stretch),
        Some((false, stretch)) => judgement.wrongly_clear.add(stretch),
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::looks::Change;
    use super::*;

    const US: u64 = 1_000;

    /// In at 0, preempted at 1000 us, in at 2000, and so on: `cycles` times.
    fn switches(cycles: u64) -> Vec<Switch> {
        (0..2 * cycles)
            .map(|n| Switch {
                at_ns: n * 1_000 * US,
                kind: if n % 2 == 0 { SwitchKind::In } else { SwitchKind::Preempted },
                cpu: 0,
            })
            .collect()
    }

    fn looks(cycles: u64, changes: &[(u64, bool)]) -> Looks {
        let changes = changes.iter().map(|(us, is_set)| Change { at_ns: us * US, is_set: *is_set }).collect();
        Looks { from_ns: 0, to_ns: cycles * 2_000 * US, changes, ..Looks::default() }
    }

    #[test]
    fn byte_that_follows_late_is_wrong_for_so_long_in_each_direction() {
        let judgement = judge(&switches(2), &[], &looks(2, &[(1_030, true), (2_020, false), (3_050, true)]));
        assert_eq!((judgement.outs.happened, judgement.outs.missed), (2, 0));
        assert_eq!(judgement.outs.latencies_ns, [30_000, 50_000]);
        assert_eq!(judgement.ins.latencies_ns, [20_000]);
        assert_eq!(judgement.wrongly_clear, Direction { total_ns: 80_000, longest_ns: 50_000 });
        assert_eq!(judgement.wrongly_set, Direction { total_ns: 20_000, longest_ns: 20_000 });
        assert_eq!((judgement.observed_ns, judgement.running_ns), (4_000 * US, 2_000 * US));
        assert_eq!(judgement.falsely_set, 0);
        assert_eq!(judgement.outs.quantile_ns(0.5), Some(30_000));
        assert_eq!(judgement.outs.quantile_ns(0.99), Some(50_000));
    }

    #[test]
    fn byte_that_is_set_before_the_kernel_has_stamped_its_record_has_followed() {
        let mut looks = looks(1, &[(999, true)]);
        looks.changes[0].at_ns += 900;
        let judgement = judge(&switches(1), &[], &looks);
        assert_eq!(judgement.outs.latencies_ns, [-100]);
        assert_eq!((judgement.falsely_set, judgement.wrongly_set.total_ns), (0, 100));
    }

    #[test]
    fn preemption_without_a_byte_is_missed_and_a_byte_without_one_is_false() {
        let judgement = judge(&switches(2), &[], &looks(2, &[(2_500, true), (2_700, false), (3_000, true)]));
        assert_eq!((judgement.outs.happened, judgement.outs.missed), (2, 1));
        assert_eq!(judgement.falsely_set, 1);
        assert_eq!(judgement.wrongly_set.longest_ns, 200 * US);
        assert_eq!(judgement.wrongly_clear.longest_ns, 1_000 * US);
    }

    #[test]
    fn byte_that_sticks_misses_every_return() {
        let judgement = judge(&switches(3), &[], &looks(3, &[(1_000, true)]));
        assert_eq!((judgement.ins.happened, judgement.ins.missed), (2, 2));
        assert_eq!((judgement.outs.happened, judgement.outs.missed), (3, 0));
    }

    #[test]
    fn what_nobody_looked_at_is_unobserved_and_never_well() {
        let mut looks = looks(2, &[(3_000, true)]);
        looks.blind = vec![(900 * US, 2_100 * US)];
        let judgement = judge(&switches(2), &[], &looks);
        assert_eq!((judgement.outs.missed, judgement.outs.unobserved), (0, 1));
        assert_eq!(judgement.wrongly_clear.total_ns, 0);
        assert_eq!(judgement.observed_ns, 2_800 * US);
    }

    #[test]
    fn short_absences_do_not_hide_a_byte_that_never_came() {
        let mut looks = looks(1, &[]);
        looks.blind = (0..9).map(|n| ((1_000 + 100 * n) * US, (1_090 + 100 * n) * US)).collect();
        let judgement = judge(&switches(1), &[], &looks);
        assert_eq!((judgement.outs.missed, judgement.outs.unobserved), (1, 0));
    }

    #[test]
    fn vcpu_that_is_held_should_be_marked_though_its_thread_sleeps() {
        let switches = [(0, SwitchKind::In), (1_010, SwitchKind::Slept), (1_900, SwitchKind::In)]
            .map(|(us, kind)| Switch { at_ns: us * US, kind, cpu: 0 });
        let at = 1_000 * US;
        let held = Descheduled {
            requested_ns: at,
            from_ns: at,
            published_ns: at,
            to_ns: 2_000 * US,
            descheduled_ns: 0,
        };
        let judgement = judge(&switches, &[held], &looks(2, &[(1_001, true), (2_000, false)]));
        assert_eq!((judgement.outs.happened, judgement.outs.missed), (1, 0));
        assert_eq!(judgement.outs.latencies_ns, [1_000]);
        assert_eq!(judgement.wrongly_set.total_ns, 0);
        // Asleep of its own will it should not be.
        let asleep = judge(&switches, &[], &looks(2, &[(1_001, true), (2_000, false)]));
        assert_eq!(asleep.falsely_set, 1);
    }
}
