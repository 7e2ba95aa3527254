//! Results of scheduling: the plan, what the kernel recorded, and how closely they agree.

use serde::Serialize;

use super::quantiles::Quantiles;
use super::statistics::ratio;
use crate::policy::catalogue::PolicyChoice;
use crate::policy::dry_run::dry_run;
use crate::policy::{Needs, Vcpu};
use crate::sched::SchedOutcome;
use crate::sched::fidelity::{Fidelity, Gap, Plan};
use crate::sched::log::{AssignmentChange, Refused};
use crate::sched::mechanism::MechanismKind;
use vmm::hooks::Descheduled;

/// Results of scheduling, from its begin to its end.
#[derive(Clone, Debug, Serialize)]
pub struct SchedFigures {
    /// The policy with its parameters, as the user wrote it.
    pub policy: String,
    /// Seed of the policy's random numbers.
    pub seed: u64,
    /// The inputs that the policy needed.
    pub needs: Needs,
    /// The mechanism.
    pub mechanism: MechanismKind,
    /// Why this mechanism was chosen.
    pub mechanism_why: String,
    /// The scheduling class of the driver thread.
    pub driver: &'static str,
    /// How long guests were scheduled (ns).
    pub length_ns: u64,
    /// When scheduling began (ns, `CLOCK_MONOTONIC`).
    pub began_monotonic_ns: u64,
    /// Why scheduling stopped before the guests ended; `None` if it did not.
    pub stop_reason: Option<String>,
    /// Number of events delivered to the policy.
    pub events: u64,
    /// Number of changes of assignments.
    pub decisions: u64,
    /// Refused decisions.
    pub refused: Refused,
    /// Number of ticks without a valid decision for their CPU.
    pub unanswered_ticks: u64,
    /// Number of events that the guests caused: doorbells and changed hints.
    pub guest_events: u64,
    /// Number of decisions that the full log dropped.
    pub lost_decisions: u64,
    /// Time from the moment at which an event was due to the decision.
    pub decision_delay: Quantiles,
    /// Time from the request to deschedule a vCPU until its `preempted` was set by this monitor:
    /// with `deschedule` only.
    pub preempted_delay: Quantiles,
    /// Number of times that a decision took a CPU from a vCPU.
    pub preemptions: u64,
    /// What the kernel recorded; `None` if the host refuses perf.
    pub observed: Option<Observed>,
    /// Comparison with a dry run.
    pub drift: Drift,
}

/// What the kernel recorded, compared with the plan.
#[derive(Clone, Debug, Serialize)]
pub struct Observed {
    /// CPU time of the vCPU threads, as a share of all CPU time.
    pub ran: f64,
    /// CPU time for which a vCPU was planned, as a share of all CPU time.
    pub planned: f64,
    /// CPU time of the planned vCPU on the planned CPU, as a share of all CPU time.
    pub on_plan: f64,
    /// The same as a share of `ran`.
    pub fidelity: f64,
    /// Time from a decision until the new vCPU has the CPU.
    pub dispatch_delay: Quantiles,
    /// Time from a decision until the old vCPU has lost the CPU.
    pub stop_delay: Quantiles,
    /// Number of decisions whose vCPU did not get the CPU before the next decision.
    pub missed: u64,
    /// Unplanned gaps of 20 ms and more.
    pub gaps: Vec<Gap>,
    /// Number of context switches that full buffers dropped.
    pub lost_switches: u64,
}

/// Comparison of a live run with a dry run of the same policy and seed, whose clock is never late
/// and whose guests give no hints.
#[derive(Clone, Debug, Serialize)]
pub struct Drift {
    /// Number of decisions in the dry run.
    pub dry_run: u64,
    /// Number of decisions up to the first difference: on each CPU, the same vCPUs in the same
    /// order.
    pub same: u64,
    /// Of these, the difference of the times since the first decision.
    pub difference: Quantiles,
}

impl SchedFigures {
    /// Computes the results of `outcome`; `descheduled` are the intervals of all vCPUs.
    pub fn new(outcome: &SchedOutcome, descheduled: impl Iterator<Item = Descheduled>) -> Self {
        let (begin, end, log) = (outcome.began_ns, outcome.ended_ns, &outcome.log);
        let published = descheduled.filter(|interval| {
            interval.requested_ns <= interval.published_ns && interval.requested_ns >= begin
        });
        let fidelity = outcome.on_cpu().map(|on_cpu| {
            let plan = Plan {
                assignments: &log.assignments,
                cpus: &outcome.cpus,
                period: begin..end,
                is_realtime: outcome.mechanism == MechanismKind::Class,
            };
            Fidelity::new(&plan, &on_cpu)
        });
        let cpu_time = (end.saturating_sub(begin) as f64) * outcome.cpus.len() as f64;
        Self {
            policy: outcome.policy.clone(),
            seed: outcome.seed,
            needs: outcome.needs,
            mechanism: outcome.mechanism,
            mechanism_why: outcome.mechanism_why.clone(),
            driver: outcome.driver,
            length_ns: end.saturating_sub(begin),
            began_monotonic_ns: begin,
            stop_reason: outcome.stop_reason.as_ref().map(ToString::to_string),
            events: log.events,
            decisions: log.assignments.len() as u64 + log.lost,
            refused: log.refused,
            unanswered_ticks: log.unanswered_ticks,
            guest_events: log.guest_events,
            lost_decisions: log.lost,
            decision_delay: Quantiles::of(log.assignments.iter().map(AssignmentChange::decision_delay_ns)),
            preempted_delay: Quantiles::of(
                published.map(|interval| interval.published_ns - interval.requested_ns),
            ),
            preemptions: preemptions(outcome),
            observed: fidelity.map(|fidelity| Observed::new(&fidelity, cpu_time, outcome.lost_switches)),
            drift: Drift::new(outcome),
        }
    }
}

/// Returns how often a decision took a CPU from a vCPU, or throttled one.
fn preemptions(outcome: &SchedOutcome) -> u64 {
    let log = &outcome.log;
    let switched = log.assignments.iter().filter(|change| change.from.is_some()).count();
    let throttled = log.throttles.iter().filter(|change| change.is_throttled).count();
    (switched + throttled) as u64
}

impl Observed {
    fn new(fidelity: &Fidelity, cpu_time: f64, lost_switches: u64) -> Self {
        let share = |ns| ratio(ns as f64, cpu_time);
        Self {
            ran: share(fidelity.ran),
            planned: share(fidelity.planned),
            on_plan: share(fidelity.on_plan),
            fidelity: ratio(fidelity.on_plan as f64, fidelity.ran as f64),
            dispatch_delay: Quantiles::of(fidelity.dispatch_delays.iter().copied()),
            stop_delay: Quantiles::of(fidelity.stop_delays.iter().copied()),
            missed: fidelity.missed,
            gaps: fidelity.gaps.clone(),
            lost_switches,
        }
    }
}

impl Drift {
    fn new(outcome: &SchedOutcome) -> Self {
        let live: Vec<(u64, usize, Option<Vcpu>)> =
            outcome.log.assignments.iter().map(|one| (one.decided_ns, one.cpu, one.to)).collect();
        let policy = outcome.policy.parse::<PolicyChoice>().and_then(|choice| choice.make(outcome.seed));
        // A policy outside the catalogue has no dry run.
        let dry_run = policy.map(|mut policy| {
            dry_run(&mut *policy, outcome.cpus.len(), &outcome.vcpus, outcome.began_ns, outcome.ended_ns)
        });
        let dry_run = dry_run.unwrap_or_default();
        let begin = (live.first().map_or(0, |first| first.0), dry_run.first().map_or(0, |first| first.at));
        let mut differences = Vec::new();
        for cpu in 0..outcome.cpus.len() {
            // By CPU: the order of decisions for several CPUs varies by microseconds.
            let live = live.iter().filter(|(_, at, _)| *at == cpu);
            let pairs = live.zip(dry_run.iter().filter(|other| other.cpu == cpu));
            let same = pairs.take_while(|((_, _, vcpu), other)| *vcpu == other.vcpu);
            differences.extend(same.map(|((at, ..), other)| (at - begin.0).abs_diff(other.at - begin.1)));
        }
        Self {
            dry_run: dry_run.len() as u64,
            same: differences.len() as u64,
            difference: Quantiles::of(differences),
        }
    }
}
