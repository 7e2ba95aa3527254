//! Fidelity: how closely the vCPU threads followed the policy's decisions.
//!
//! A pure comparison of the decision log with perf's context switches. It yields the CPU time that
//! went to the planned vCPU on the planned CPU, the delays of decisions, and unplanned [gaps](Gap).

mod gaps;
mod on_cpu;
#[cfg(test)]
mod tests;

use std::ops::Range;

use super::log::AssignmentChange;
use crate::policy::{Cpu, Ns, Vcpu};
pub use gaps::{Gap, GapCause};
pub use on_cpu::{OnCpu, on_cpu};

/// What a policy decided in a session.
#[derive(Clone, Debug)]
pub struct Plan<'a> {
    /// Changes of assignments, in order.
    pub assignments: &'a [AssignmentChange],
    /// The host's numbers of the CPUs.
    pub cpus: &'a [usize],
    /// When scheduling began and ended (ns, `CLOCK_MONOTONIC`).
    pub period: Range<Ns>,
    /// Whether the vCPU threads are of a real-time class.
    pub is_realtime: bool,
}

/// How closely the vCPU threads followed a plan. All times are in ns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fidelity {
    /// CPU time of all vCPU threads.
    pub ran: Ns,
    /// CPU time for which a vCPU was planned.
    pub planned: Ns,
    /// CPU time of the planned vCPU on the planned CPU.
    pub on_plan: Ns,
    /// Time from a decision until the new vCPU has the CPU.
    pub dispatch_delays: Vec<Ns>,
    /// Time from a decision until the old vCPU has lost the CPU.
    pub stop_delays: Vec<Ns>,
    /// Number of decisions whose vCPU did not get the CPU before the next decision.
    pub missed: u64,
    /// Unplanned gaps.
    pub gaps: Vec<Gap>,
}

/// An interval for which a vCPU, or none, is planned for a CPU.
#[derive(Clone, Copy, Debug)]
struct Slot {
    from: Ns,
    to: Ns,
    cpu: Cpu,
    vcpu: Option<Vcpu>,
}

impl Plan<'_> {
    /// Returns the slots, by start, except where the host's scheduler chooses.
    fn slots(&self) -> Vec<Slot> {
        let mut slots = Vec::with_capacity(self.assignments.len());
        for cpu in 0..self.cpus.len() {
            let here: Vec<_> = self.assignments.iter().filter(|change| change.cpu == cpu).collect();
            for (index, change) in here.iter().enumerate() {
                let next = here.get(index + 1).map_or(self.period.end, |next| next.decided_ns);
                let (from, to) = (change.decided_ns.max(self.period.start), next.min(self.period.end));
                if from < to && !change.to_host {
                    slots.push(Slot { from, to, cpu, vcpu: change.to });
                }
            }
        }
        slots.sort_by_key(|slot| slot.from);
        slots
    }

    fn host_cpu(&self, cpu: Cpu) -> Option<usize> {
        self.cpus.get(cpu).copied()
    }
}

impl Fidelity {
    /// Compares `plan` with the intervals for which each vCPU was on a CPU.
    pub fn new(plan: &Plan<'_>, on_cpu: &[Vec<OnCpu>]) -> Self {
        let slots = plan.slots();
        let planned = slots.iter().filter(|slot| slot.vcpu.is_some());
        let mut fidelity = Self {
            ran: on_cpu.iter().flatten().map(|interval| interval.to - interval.from).sum(),
            planned: planned.map(|slot| slot.to - slot.from).sum(),
            on_plan: on_plan(plan, &slots, on_cpu),
            gaps: gaps::gaps(plan, &slots, on_cpu),
            ..Self::default()
        };
        fidelity.add_delays(plan, on_cpu);
        fidelity
    }

    /// Measures how long each decision took to have effect.
    fn add_delays(&mut self, plan: &Plan<'_>, on_cpu: &[Vec<OnCpu>]) {
        // When the next decision for each CPU follows; hence in reverse.
        let mut next_ns = vec![plan.period.end; plan.cpus.len()];
        for change in plan.assignments.iter().rev() {
            let Some(next) = next_ns.get_mut(change.cpu) else { continue };
            let next = std::mem::replace(next, change.decided_ns);
            // The interval of a vCPU that contains the decision, or follows it.
            let interval_of = |vcpu: Option<Vcpu>| {
                let own = on_cpu.get(vcpu?)?;
                let index = own.partition_point(|interval| interval.to <= change.decided_ns);
                own.get(index).filter(|interval| interval.from < plan.period.end)
            };
            let is_on_plan = |new: &&OnCpu| new.from < next && Some(new.cpu) == plan.host_cpu(change.cpu);
            match interval_of(change.to).filter(is_on_plan) {
                Some(new) if new.from >= change.decided_ns => {
                    self.dispatch_delays.push(new.from - change.decided_ns);
                }
                // It had the CPU already: its predecessor had halted.
                Some(_) => {}
                None => self.missed += u64::from(change.to.is_some()),
            }
            let is_stopped = |old: &&OnCpu| old.from < change.decided_ns && old.to < next;
            if let Some(old) = interval_of(change.from).filter(is_stopped) {
                self.stop_delays.push(old.to - change.decided_ns);
            }
        }
    }
}

/// Returns the CPU time (ns) that planned vCPUs had on the planned CPUs. `slots` are sorted by
/// start.
fn on_plan(plan: &Plan<'_>, slots: &[Slot], on_cpu: &[Vec<OnCpu>]) -> Ns {
    let mut sum = 0;
    // Slots are sorted, so intervals before one slot are before all later ones.
    let mut next = vec![0; on_cpu.len()];
    for slot in slots {
        let Some((vcpu, own)) = slot.vcpu.and_then(|vcpu| Some((vcpu, on_cpu.get(vcpu)?))) else { continue };
        while own.get(next[vcpu]).is_some_and(|interval| interval.to <= slot.from) {
            next[vcpu] += 1;
        }
        let within = own.iter().skip(next[vcpu]).take_while(|interval| interval.from < slot.to);
        let here = within.filter(|interval| Some(interval.cpu) == plan.host_cpu(slot.cpu));
        sum += here.map(|interval| interval.to.min(slot.to) - interval.from.max(slot.from)).sum::<Ns>();
    }
    sum
}
