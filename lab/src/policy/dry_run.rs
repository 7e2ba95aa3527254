//! Dry run: the decisions of a policy with a clock that is never late and a guest that publishes no
//! hints.
//!
//! A dry run is the undisturbed schedule. Comparing it with a live run yields the drift of the live
//! run.

use super::schedule::{Change, Schedule};
use super::{Assignment, Cpu, Decision, Event, Ns, Policy, Vcpu};

/// A change of the assignment of a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct PlannedSwitch {
    /// Time of the decision (ns).
    pub at: Ns,
    /// The CPU.
    pub cpu: Cpu,
    /// The next vCPU; `None` for idle.
    pub vcpu: Option<Vcpu>,
}

/// Runs `policy` from `begin` to `end` (ns) on `cpus` CPUs, and returns all switches in order.
/// `guests` holds the number of vCPUs of each guest.
pub fn dry_run(
    policy: &mut dyn Policy,
    cpus: usize,
    guests: &[usize],
    begin: Ns,
    end: Ns,
) -> Vec<PlannedSwitch> {
    let mut schedule = Schedule::new(cpus, guests);
    schedule.advance_to(begin);
    let (mut switches, mut changes, mut out) = (Vec::new(), Vec::new(), Vec::<Decision>::new());
    let ready = (0..schedule.state().vcpus.len()).map(|vcpu| Event::Ready { vcpu });
    let mut events: Vec<_> = ready.chain([Event::Begin]).rev().collect();
    loop {
        let now = schedule.state().now;
        let Some(event) = events.pop().or_else(|| schedule.pop_due(&mut changes)) else {
            record(&mut changes, now, &mut switches);
            match schedule.next_due().filter(|due| *due < end) {
                Some(due) => schedule.advance_to(due),
                None => return switches,
            }
            continue;
        };
        out.clear();
        policy.decide(event, schedule.state(), &mut out);
        let applied = schedule.apply(now, &out, &mut changes);
        schedule.complete(event, applied.is_err());
        record(&mut changes, now, &mut switches);
    }
}

/// Moves the switches among `changes` to `switches`.
fn record(changes: &mut Vec<Change>, at: Ns, switches: &mut Vec<PlannedSwitch>) {
    for change in changes.drain(..) {
        if let Change::Switch { cpu, to, .. } = change {
            let vcpu = if let Assignment::Vcpu(vcpu) = to { Some(vcpu) } else { None };
            switches.push(PlannedSwitch { at, cpu, vcpu });
        }
    }
}
