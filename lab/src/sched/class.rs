//! Mechanism `class`: priorities decide, and the kernel preempts.
//!
//! All vCPU threads are pinned `SCHED_FIFO` threads, and the assigned one has the higher priority.
//! The new thread is promoted before the old one is demoted, so no third thread runs in between.
//! Nothing leaves `KVM_RUN`. A preemption falls on any instruction and is an ordinary context
//! switch: the program at `sched_switch` sees it, and the kernel counts run delay.
//!
//! When the assigned vCPU halts, the next thread of its CPU runs: an assignment is an order, not an
//! exclusive grant. The vCPUs of an idle CPU are descheduled.
//!
//! vCPU threads stay in the fair class on CPUs that the host schedules.

use super::mechanism::{Mechanism, MechanismKind};
use super::vcpu_threads::VcpuThreads;
use crate::policy::{Assignment, SchedState};
use host::thread::Class;

const ASSIGNED: Class = Class::Fifo(20);
const WAITING: Class = Class::Fifo(10);

/// Mechanism `class`.
#[derive(Debug)]
pub(super) struct ClassMechanism {
    vcpu_threads: VcpuThreads,
}

impl ClassMechanism {
    pub(super) fn new(vcpu_threads: VcpuThreads) -> Self {
        Self { vcpu_threads }
    }
}

impl Mechanism for ClassMechanism {
    fn kind(&self) -> MechanismKind {
        MechanismKind::Class
    }

    fn vcpu_threads(&mut self) -> &mut VcpuThreads {
        &mut self.vcpu_threads
    }

    fn apply(&mut self, state: &SchedState) {
        let threads = &mut self.vcpu_threads;
        for vcpu in 0..threads.count() {
            if let Some(cpu) = state.cpu_of(vcpu) {
                threads.pin(vcpu, cpu);
                // After a refusal it is preempted more often, which the record shows.
                let _ = threads.set_class(vcpu, ASSIGNED);
                threads.schedule(vcpu);
            }
        }
        for vcpu in (0..threads.count()).filter(|vcpu| state.is_unassigned(*vcpu)) {
            let home = state.home_of(vcpu);
            let assignment = state.cpus.get(home).map_or(Assignment::Host, |cpu| cpu.assignment);
            if assignment != Assignment::Host {
                threads.pin(vcpu, home);
                let _ = threads.set_class(vcpu, WAITING);
            } else if matches!(threads.class(vcpu), Class::Fifo(_)) {
                let _ = threads.set_class(vcpu, Class::Fair);
            }
            if assignment == Assignment::Idle || !state.may_run(vcpu) {
                threads.deschedule(vcpu);
            } else {
                threads.schedule(vcpu);
            }
        }
    }
}
