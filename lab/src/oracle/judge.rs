//! Judge: compares samples of `preempted` with the true state of the vCPU. Pure: no thread, no
//! clock.

use crate::results::statistics::quantile;
use serde::Serialize;

use super::sampler::Samples;
use host::perf::{Switch, SwitchKind};
use vmm::hooks::Descheduled;

/// Time (ns) by which `preempted` may correctly change before the timestamp of a switch, which the
/// kernel takes slightly later.
const SLACK_NS: u64 = 3_000;

/// Errors of `preempted` over one observation.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Judgement {
    /// Observed time, without gaps between samples (ns).
    pub observed_ns: u64,
    /// Observed time during which the vCPU ran (ns).
    pub running_ns: u64,
    /// Preemptions: `preempted` must be set.
    pub sched_out: Edge,
    /// Switches back in after a preemption: `preempted` must be cleared.
    pub sched_in: Edge,
    /// Number of times that `preempted` was set while the vCPU was not preempted.
    pub falsely_set: u64,
    /// Time that `preempted` was set while the vCPU was not preempted.
    pub wrongly_set: WrongTime,
    /// Time that `preempted` was clear while the vCPU was preempted.
    pub wrongly_clear: WrongTime,
}

/// Transitions in one direction, and how `preempted` followed them.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Edge {
    /// Number of transitions.
    pub happened: u64,
    /// Transitions that `preempted` did not follow before the next transition.
    pub missed: u64,
    /// Transitions without samples, which are neither followed nor missed.
    pub unobserved: u64,
    /// Latencies from the timestamp of the switch to the first sample with the new value (ns),
    /// sorted. Negative if `preempted` changed first.
    #[serde(skip)]
    pub latencies_ns: Vec<i64>,
}

impl Edge {
    /// The smallest latency (ns) that at least the fraction `share` of all latencies does not
    /// exceed; `None` without any.
    pub fn quantile_ns(&self, share: f64) -> Option<i64> {
        quantile(&self.latencies_ns, share)
    }
}

/// Time that `preempted` had one of its two wrong values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct WrongTime {
    /// Total (ns).
    pub total_ns: u64,
    /// Longest single interval (ns).
    pub longest_ns: u64,
}

impl WrongTime {
    fn add(&mut self, interval_ns: u64) {
        self.total_ns += interval_ns;
        self.longest_ns = self.longest_ns.max(interval_ns);
    }
}

/// An interval in which the correct value of `preempted` is constant.
#[derive(Clone, Copy, Debug)]
struct Span {
    from_ns: u64,
    to_ns: u64,
    is_preempted: bool,
    is_running: bool,
}

/// Judges `samples` by the context switches of the vCPU thread and the intervals in which the
/// monitor descheduled the vCPU. The state before the first switch is unknown, and not judged.
pub fn judge(switches: &[Switch], descheduled: &[Descheduled], samples: &Samples) -> Judgement {
    let spans = spans(switches, descheduled, samples);
    let mut judgement = Judgement::default();
    for pair in spans.windows(2) {
        let [before, span] = pair else { continue };
        if before.is_preempted != span.is_preempted {
            let edge = if span.is_preempted { &mut judgement.sched_out } else { &mut judgement.sched_in };
            follow(edge, *span, samples);
        }
    }
    judgement.sched_out.latencies_ns.sort_unstable();
    judgement.sched_in.latencies_ns.sort_unstable();
    judgement.falsely_set = falsely_set(&spans, samples);
    add_times(&mut judgement, &spans, samples);
    judgement
}

/// A change of the true state of the vCPU.
#[derive(Clone, Copy, Debug)]
enum Mark {
    Switch(SwitchKind),
    Descheduled(bool),
}

/// The true state as consecutive spans, within the time of the samples.
fn spans(switches: &[Switch], descheduled: &[Descheduled], samples: &Samples) -> Vec<Span> {
    let mut marks: Vec<(u64, Mark)> =
        switches.iter().map(|switch| (switch.at_ns, Mark::Switch(switch.kind))).collect();
    for interval in descheduled {
        marks.push((interval.from_ns, Mark::Descheduled(true)));
        marks.push((interval.to_ns, Mark::Descheduled(false)));
    }
    marks.sort_by_key(|(at_ns, _)| *at_ns);
    let (mut last_switch, mut is_descheduled) = (None, false);
    let mut spans: Vec<Span> = Vec::with_capacity(marks.len());
    for (at_ns, mark) in marks {
        match mark {
            Mark::Switch(kind) => last_switch = Some(kind),
            Mark::Descheduled(value) => is_descheduled = value,
        }
        if let Some(span) = spans.last_mut() {
            span.to_ns = at_ns.min(samples.to_ns);
        }
        let is_observed = at_ns >= samples.from_ns && at_ns < samples.to_ns;
        let Some(last_switch) = last_switch.filter(|_| is_observed) else { continue };
        let is_preempted = is_descheduled || last_switch == SwitchKind::Preempted;
        let is_running = !is_descheduled && last_switch == SwitchKind::In;
        spans.push(Span { from_ns: at_ns, to_ns: samples.to_ns, is_preempted, is_running });
    }
    // Merge spans with equal states.
    spans.dedup_by(|next, span| {
        let is_same = next.is_preempted == span.is_preempted && next.is_running == span.is_running;
        if is_same {
            span.to_ns = next.to_ns;
        }
        is_same
    });
    spans
}

/// Counts the transition at the start of `span`, and whether `preempted` followed it.
fn follow(edge: &mut Edge, span: Span, samples: &Samples) {
    edge.happened += 1;
    let earliest = span.from_ns.saturating_sub(SLACK_NS);
    if is_set_at(samples, earliest) == span.is_preempted {
        return; // it had the correct value already, so there is no latency
    }
    let next = samples.transitions.partition_point(|transition| transition.at_ns < earliest);
    let followed = samples.transitions.get(next..).unwrap_or_default().iter();
    let mut within = followed.take_while(|transition| transition.at_ns <= span.to_ns);
    match within.find(|transition| transition.is_set == span.is_preempted) {
        Some(transition) => {
            edge.latencies_ns.push(transition.at_ns.cast_signed() - span.from_ns.cast_signed());
        }
        None if is_unobserved(samples, span) => edge.unobserved += 1,
        None => edge.missed += 1,
    }
}

fn is_set_at(samples: &Samples, at_ns: u64) -> bool {
    let after = samples.transitions.partition_point(|transition| transition.at_ns <= at_ns);
    after
        .checked_sub(1)
        .and_then(|last| samples.transitions.get(last))
        .map_or(samples.began_set, |transition| transition.is_set)
}

/// Whether one gap between samples covers most of `span`. One sample in its middle suffices: once
/// `preempted` has followed, it keeps its value until the span ends.
fn is_unobserved(samples: &Samples, span: Span) -> bool {
    let first = samples.gaps.partition_point(|(_, to)| *to <= span.from_ns);
    let within =
        samples.gaps.get(first..).unwrap_or_default().iter().take_while(|(from, _)| *from < span.to_ns);
    let overlap = |(from, to): &(u64, u64)| (*to).min(span.to_ns) - (*from).max(span.from_ns);
    2 * within.map(overlap).max().unwrap_or(0) > span.to_ns - span.from_ns
}

/// Counts transitions to set in spans in which `preempted` should be clear.
fn falsely_set(spans: &[Span], samples: &Samples) -> u64 {
    let mut count = 0;
    for transition in samples.transitions.iter().filter(|transition| transition.is_set) {
        let next = spans.partition_point(|span| span.from_ns <= transition.at_ns + SLACK_NS);
        let span = next.checked_sub(1).and_then(|index| spans.get(index));
        count += u64::from(span.is_some_and(|span| !span.is_preempted));
    }
    count
}

/// Adds up observed, running and wrong times. Gaps between samples do not count.
fn add_times(judgement: &mut Judgement, spans: &[Span], samples: &Samples) {
    let mut transitions = samples.transitions.iter().peekable();
    let mut gaps = samples.gaps.iter().copied().peekable();
    let mut is_set = samples.began_set;
    // The current wrong value of `preempted`, and for how long it has had it.
    let mut wrong: Option<(bool, u64)> = None;
    for span in spans {
        let mut at = span.from_ns;
        while at < span.to_ns {
            while let Some(transition) = transitions.next_if(|transition| transition.at_ns <= at) {
                is_set = transition.is_set;
            }
            while gaps.next_if(|(_, to)| *to <= at).is_some() {}
            let gap = gaps.peek().copied();
            let is_in_gap = gap.is_some_and(|(from, _)| from <= at);
            let next_gap_edge = gap.map_or(u64::MAX, |(from, to)| if is_in_gap { to } else { from });
            let next_transition = transitions.peek().map_or(u64::MAX, |transition| transition.at_ns);
            let next = span.to_ns.min(next_transition).min(next_gap_edge);
            let length = next - at;
            at = next;
            if is_in_gap {
                continue;
            }
            judgement.observed_ns += length;
            judgement.running_ns += if span.is_running { length } else { 0 };
            let wrong_value = (is_set != span.is_preempted).then_some(is_set);
            if wrong.map(|(value, _)| value) != wrong_value {
                add_wrong(judgement, wrong);
                wrong = wrong_value.map(|value| (value, 0));
            }
            if let Some((_, interval)) = &mut wrong {
                *interval += length;
            }
        }
    }
    add_wrong(judgement, wrong);
}

fn add_wrong(judgement: &mut Judgement, wrong: Option<(bool, u64)>) {
    match wrong {
        Some((true, interval)) => judgement.wrongly_set.add(interval),
        Some((false, interval)) => judgement.wrongly_clear.add(interval),
        None => {}
    }
}

#[cfg(test)]
mod tests;
