//! Class: the chosen vCPU's thread is put before the others', and the kernel does the rest.
//!
//! All vCPU threads are pinned and of the FIFO class; the one that was chosen is of a higher priority. The new one is promoted
//! before the old one is demoted, so that at no moment a third one comes between. Nothing leaves `KVM_RUN`; a preemption falls on
//! any instruction, and is one to the kernel, too: the program on `sched_switch` sees it, and run delay counts it.
//!
//! When the chosen one halts, the next one of its CPU runs: a plan is an order, not an exclusive grant. A CPU that is to be idle
//! has its vCPUs parked.
//!
//! vCPU threads whose CPU is the host's to give are of the fair class, as ever.

use super::mechanism::{Mechanism, MechanismKind};
use super::vcpu_threads::VcpuThreads;
use crate::policy::{Assignment, SchedState, Vcpu};
use host::thread::Class;

const CHOSEN: Class = Class::Fifo(20);
const WAITING: Class = Class::Fifo(10);

/// See the module.
#[derive(Debug)]
pub(super) struct Classes {
    vcpu_threads: VcpuThreads,
}

impl Classes {
    pub(super) fn new(vcpu_threads: VcpuThreads) -> Self {
        Self { vcpu_threads }
    }
}

impl Mechanism for Classes {
    fn kind(&self) -> MechanismKind {
        MechanismKind::Class
    }

    fn vcpu_threads(&mut self) -> &mut VcpuThreads {
        &mut self.vcpu_threads
    }

    fn settle(&mut self, state: &SchedState) {
        let assignment_of = |vcpu: Vcpu| {
            let home = state.vcpus.get(vcpu).map_or(0, |view| view.home);
            (home, state.cpus.get(home).map_or(Assignment::Host, |cpu| cpu.assignment))
        };
        for vcpu in 0..self.vcpu_threads.count() {
            if let Some(cpu) = state.cpu_of(vcpu) {
                self.vcpu_threads.place(vcpu, cpu);
                // Refused, it is overtaken less often; what happened is on record.
                let _ = self.vcpu_threads.set_class(vcpu, CHOSEN);
                self.vcpu_threads.release(vcpu);
            }
        }
        let is_left = |vcpu: &Vcpu| {
            state.cpu_of(*vcpu).is_none() && state.vcpus.get(*vcpu).is_some_and(|view| !view.is_gone)
        };
        for vcpu in (0..self.vcpu_threads.count()).filter(is_left) {
            let (home, plan) = assignment_of(vcpu);
            if plan != Assignment::Host {
                self.vcpu_threads.place(vcpu, home);
                let _ = self.vcpu_threads.set_class(vcpu, WAITING);
            } else if matches!(self.vcpu_threads.class(vcpu), Class::Fifo(_)) {
                let _ = self.vcpu_threads.set_class(vcpu, Class::Fair);
            }
            if plan == Assignment::Idle || !state.may_run(vcpu) {
                self.vcpu_threads.hold(vcpu);
            } else {
                self.vcpu_threads.release(vcpu);
            }
        }
    }
}
