//! What steering came to: the plan, the fact, and how far they agree.

use serde::Serialize;

use super::quantiles::Quantiles;
use super::statistics::ratio;
use crate::policy::catalogue::PolicyChoice;
use crate::policy::dry_run::dry_run;
use crate::policy::{Needs, Vcpu};
use crate::sched::SchedOutcome;
use crate::sched::fidelity::{Fidelity, Gap, judge};
use crate::sched::mechanism::MechanismKind;
use vmm::hooks::Descheduled;

/// Scheduling, from its begin to its end.
#[derive(Clone, Debug, Serialize)]
pub struct SchedFigures {
    /// The policy, as it was asked for.
    pub policy: String,
    /// What it drew its randomness from.
    pub seed: u64,
    /// What it wanted to be told.
    pub needs: Needs,
    /// The mechanism.
    pub mechanism: MechanismKind,
    /// Why this one.
    pub mechanism_why: String,
    /// How the driver thread was scheduled.
    pub driver: &'static str,
    /// How long it lasted (ns).
    pub length_ns: u64,
    /// When it began (ns of the monotonic clock).
    pub began_monotonic_ns: u64,
    /// Why it ended by itself, if it did.
    pub ended: Option<String>,
    /// Times that the policy was asked.
    pub asked: u64,
    /// Times that another vCPU, or none, was chosen for a CPU.
    pub decisions: u64,
    /// What was refused.
    pub refused: Refused,
    /// Ticks without a usable answer.
    pub unanswered: u64,
    /// Events that the guests rang for, and hints.
    pub rings: u64,
    /// Decisions that found no room in the log.
    pub lost_decisions: u64,
    /// From the moment that a decision was due to that at which it was made.
    pub late: Quantiles,
    /// From the order that a vCPU stop to its byte saying so, where this monitor writes it: with `park`.
    pub byte: Quantiles,
    /// Times that a vCPU was taken off its CPU by decision.
    pub preemptions: u64,
    /// What happened; `None` where the host does not tell.
    pub fact: Option<Fact>,
    /// How far it went as it would have gone undisturbed.
    pub drift: Drift,
}

/// Decisions that were not taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// They came too late.
    pub late: u64,
    /// They contradicted themselves.
    pub contradictory: u64,
    /// They named what there is not.
    pub impossible: u64,
}

/// What happened, by the kernel's own record.
#[derive(Clone, Debug, Serialize)]
pub struct Fact {
    /// vCPU threads' CPU time, as a share of all CPU time.
    pub ran: f64,
    /// CPU time for which a vCPU was planned, as a share of all CPU time.
    pub planned: f64,
    /// What they ran in their turns, as a share of all CPU time.
    pub in_turn: f64,
    /// What they ran in their turns, as a share of what they ran: the fidelity.
    pub fidelity: f64,
    /// From a decision to the new vCPU's thread having the CPU.
    pub on: Quantiles,
    /// From a decision to the old one's having lost it.
    pub off: Quantiles,
    /// Decisions whose vCPU did not get the CPU before the next one.
    pub missed: u64,
    /// Gaps of 20 ms and more that nobody had planned.
    pub gaps: Vec<Gap>,
    /// Switches that found no room in the record.
    pub lost_switches: u64,
}

/// A live run beside a rehearsal of the same policy, with the same seed, a clock that is never late, and a guest that is silent.
#[derive(Clone, Debug, Serialize)]
pub struct Drift {
    /// Decisions that the rehearsal made in the same time.
    pub dry_run: u64,
    /// So many, from the first on, were the same live: on each CPU the same vCPUs in the same order.
    pub same: u64,
    /// Of those, how much earlier or later they came.
    pub apart: Quantiles,
}

impl SchedFigures {
    /// What is left of sched, in figures. `holds` are those of all vCPUs.
    pub fn new(remains: &SchedOutcome, holds: impl Iterator<Item = Descheduled>) -> Self {
        let (begin, end, log) = (remains.began_ns, remains.ended_ns, &remains.log);
        let byte = holds.filter(|held| held.requested_ns <= held.published_ns && held.requested_ns >= begin);
        let [late, contradictory, impossible] = log.refused;
        let judged = remains.on_cpu().map(|on_cpu| {
            let are_first = remains.mechanism == MechanismKind::Class;
            judge(&log.chosen, &on_cpu, &remains.cpus, (begin, end), are_first)
        });
        let lateness = log.chosen.iter().map(|one| one.decided_ns.saturating_sub(one.due_ns));
        let all = (end.saturating_sub(begin) as f64) * remains.cpus.len() as f64;
        Self {
            policy: remains.policy.clone(),
            seed: remains.seed,
            needs: remains.needs,
            mechanism: remains.mechanism,
            mechanism_why: remains.why.clone(),
            driver: remains.driver,
            length_ns: end.saturating_sub(begin),
            began_monotonic_ns: begin,
            ended: remains.end.as_ref().map(ToString::to_string),
            asked: log.asked,
            decisions: log.chosen.len() as u64 + log.lost,
            refused: Refused { late, contradictory, impossible },
            unanswered: log.unanswered,
            rings: log.rings,
            lost_decisions: log.lost,
            late: Quantiles::of(lateness),
            byte: Quantiles::of(byte.map(|held| held.published_ns - held.requested_ns)),
            preemptions: preemptions(remains),
            fact: judged.map(|judged| Fact::new(&judged, all, remains.lost_switches)),
            drift: Drift::new(remains),
        }
    }
}

/// Times that one who was to run was to run no more.
fn preemptions(remains: &SchedOutcome) -> u64 {
    let stopped = remains.log.stopped.iter().filter(|one| one.is_stopped).count();
    (remains.log.chosen.iter().filter(|one| one.from.is_some()).count() + stopped) as u64
}

impl Fact {
    fn new(judged: &Fidelity, all: f64, lost_switches: u64) -> Self {
        let share = |ns| ratio(ns as f64, all);
        Self {
            ran: share(judged.ran),
            planned: share(judged.planned),
            in_turn: share(judged.in_turn),
            fidelity: ratio(judged.in_turn as f64, judged.ran as f64),
            on: Quantiles::of(judged.on.iter().copied()),
            off: Quantiles::of(judged.off.iter().copied()),
            missed: judged.missed,
            gaps: judged.gaps.clone(),
            lost_switches,
        }
    }
}

impl Drift {
    fn new(remains: &SchedOutcome) -> Self {
        let live: Vec<(u64, usize, Option<Vcpu>)> =
            remains.log.chosen.iter().map(|one| (one.decided_ns, one.cpu, one.to)).collect();
        let policy = remains.policy.parse::<PolicyChoice>().and_then(|choice| choice.make(remains.seed));
        // One that is not in the catalogue cannot be had a second time.
        let dry_run = policy.map(|mut policy| {
            dry_run(&mut *policy, remains.cpus.len(), &remains.vcpus, remains.began_ns, remains.ended_ns)
        });
        let dry_run = dry_run.unwrap_or_default();
        let begin = (live.first().map_or(0, |first| first.0), dry_run.first().map_or(0, |first| first.at));
        let mut apart = Vec::new();
        for cpu in 0..remains.cpus.len() {
            // Each CPU by itself: which of two is asked about first is a matter of microseconds.
            let live = live.iter().filter(|(_, at, _)| *at == cpu);
            let pairs = live.zip(dry_run.iter().filter(|other| other.cpu == cpu));
            let same = pairs.take_while(|((_, _, vcpu), other)| *vcpu == other.vcpu);
            apart.extend(same.map(|((at, ..), other)| (at - begin.0).abs_diff(other.at - begin.1)));
        }
        Self { dry_run: dry_run.len() as u64, same: apart.len() as u64, apart: Quantiles::of(apart) }
    }
}
