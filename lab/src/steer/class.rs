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

use super::hands::Hands;
use super::mechanism::{Mechanism, MechanismKind};
use crate::policy::{Plan, Scene, Vcpu};
use host::thread::Class;

const CHOSEN: Class = Class::Fifo(20);
const WAITING: Class = Class::Fifo(10);

/// See the module.
#[derive(Debug)]
pub(super) struct Classes {
    hands: Hands,
}

impl Classes {
    pub(super) fn new(hands: Hands) -> Self {
        Self { hands }
    }
}

impl Mechanism for Classes {
    fn kind(&self) -> MechanismKind {
        MechanismKind::Class
    }

    fn hands(&mut self) -> &mut Hands {
        &mut self.hands
    }

    fn settle(&mut self, scene: &Scene) {
        let plan_of = |vcpu: Vcpu| {
            let home = scene.vcpus.get(vcpu).map_or(0, |view| view.home);
            (home, scene.cpus.get(home).map_or(Plan::Host, |cpu| cpu.plan))
        };
        for vcpu in 0..self.hands.count() {
            if let Some(cpu) = scene.cpu_of(vcpu) {
                self.hands.place(vcpu, cpu);
                // Refused, it is overtaken less often; what happened is on record.
                let _ = self.hands.set_class(vcpu, CHOSEN);
                self.hands.release(vcpu);
            }
        }
        let is_left = |vcpu: &Vcpu| {
            scene.cpu_of(*vcpu).is_none() && scene.vcpus.get(*vcpu).is_some_and(|view| !view.is_gone)
        };
        for vcpu in (0..self.hands.count()).filter(is_left) {
            let (home, plan) = plan_of(vcpu);
            if plan != Plan::Host {
                self.hands.place(vcpu, home);
                let _ = self.hands.set_class(vcpu, WAITING);
            } else if matches!(self.hands.class(vcpu), Class::Fifo(_)) {
                let _ = self.hands.set_class(vcpu, Class::Fair);
            }
            if plan == Plan::Idle || !scene.may_run(vcpu) {
                self.hands.hold(vcpu);
            } else {
                self.hands.release(vcpu);
            }
        }
    }
}
