//! Park: a vCPU that is not to run is taken out of the guest, and its thread waits.
//!
//! It takes no right: a kick, and a wait that somebody ends. The thread says in the record that its vCPU is preempted before it
//! waits, and how long it waited afterwards; the kernel sees a thread that sleeps, and counts no run delay. A CPU that is to be
//! idle is idle.
//!
//! Turns are timed by the threads themselves: each has a timer that kicks it when its own turn ends. It then asks the policy,
//! and, once its byte says so, wakes whoever comes next, and waits. No other thread has to be scheduled first.

use std::io;

use super::hands::Hands;
use super::mechanism::{Mechanism, MechanismKind};
use crate::policy::{Ns, Plan, Scene, Vcpu};
use host::kick;
use host::timer::ThreadTimer;

/// See the module.
#[derive(Debug)]
pub(super) struct Parks {
    hands: Hands,
    /// Each vCPU's timer, and for when it was last set.
    timers: Vec<(ThreadTimer, Ns)>,
}

impl Parks {
    pub(super) fn new(hands: Hands) -> io::Result<Self> {
        let timer = |vcpu| Ok((ThreadTimer::new(hands.tid(vcpu), kick::signal())?, 0));
        let timers = (0..hands.count()).map(timer).collect::<io::Result<_>>()?;
        Ok(Self { hands, timers })
    }
}

impl Mechanism for Parks {
    fn kind(&self) -> MechanismKind {
        MechanismKind::Park
    }

    fn hands(&mut self) -> &mut Hands {
        &mut self.hands
    }

    fn settle(&mut self, scene: &Scene) {
        let count = self.hands.count();
        // First those who stop: their kicks are under way while the others are woken.
        let is_left = |vcpu: &Vcpu| {
            scene.cpu_of(*vcpu).is_none() && scene.vcpus.get(*vcpu).is_some_and(|view| !view.is_gone)
        };
        for vcpu in (0..count).filter(is_left) {
            let home = scene.vcpus.get(vcpu).map_or(0, |view| view.home);
            let is_hosts = scene.cpus.get(home).is_none_or(|cpu| cpu.plan == Plan::Host);
            if is_hosts && scene.may_run(vcpu) {
                self.hands.release(vcpu);
            } else {
                self.hands.hold(vcpu);
            }
        }
        for (cpu, view) in scene.cpus.iter().enumerate() {
            let Plan::Runs(vcpu) = view.plan else {
                self.hands.close(cpu);
                continue;
            };
            self.hands.take_over(cpu, vcpu);
            self.hands.place(vcpu, cpu);
            if let Some((timer, set_for)) = self.timers.get_mut(vcpu)
                && *set_for != view.until
            {
                *set_for = view.until;
                // Should that fail, the driver finds that the turn is over, a little later.
                let _ = timer.set(view.until);
            }
        }
    }
}
