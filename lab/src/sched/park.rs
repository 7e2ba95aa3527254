//! Park: a vCPU that is not to run is taken out of the guest, and its thread waits.
//!
//! It takes no right: a kick, and a wait that somebody ends. The thread says in the record that its vCPU is preempted before it
//! waits, and how long it waited afterwards; the kernel sees a thread that sleeps, and counts no run delay. A CPU that is to be
//! idle is idle.
//!
//! Turns are timed by the threads themselves: each has a timer that kicks it when its own turn ends. It then asks the policy,
//! and, once its byte says so, wakes whoever comes next, and waits. No other thread has to be scheduled first.

use std::io;

use super::mechanism::{Mechanism, MechanismKind};
use super::vcpu_threads::VcpuThreads;
use crate::policy::{Assignment, Ns, SchedState, Vcpu};
use host::kick;
use host::timer::ThreadTimer;

/// See the module.
#[derive(Debug)]
pub(super) struct Parks {
    vcpu_threads: VcpuThreads,
    /// Each vCPU's timer, and for when it was last set.
    timers: Vec<(ThreadTimer, Ns)>,
}

impl Parks {
    pub(super) fn new(vcpu_threads: VcpuThreads) -> io::Result<Self> {
        let timer = |vcpu| Ok((ThreadTimer::new(vcpu_threads.tid(vcpu), kick::signal())?, 0));
        let timers = (0..vcpu_threads.count()).map(timer).collect::<io::Result<_>>()?;
        Ok(Self { vcpu_threads, timers })
    }
}

impl Mechanism for Parks {
    fn kind(&self) -> MechanismKind {
        MechanismKind::Deschedule
    }

    fn vcpu_threads(&mut self) -> &mut VcpuThreads {
        &mut self.vcpu_threads
    }

    fn settle(&mut self, state: &SchedState) {
        let count = self.vcpu_threads.count();
        // First those who stop: their kicks are under way while the others are woken.
        let is_left = |vcpu: &Vcpu| {
            state.cpu_of(*vcpu).is_none() && state.vcpus.get(*vcpu).is_some_and(|view| !view.is_gone)
        };
        for vcpu in (0..count).filter(is_left) {
            let home = state.vcpus.get(vcpu).map_or(0, |view| view.home);
            let is_hosts = state.cpus.get(home).is_none_or(|cpu| cpu.assignment == Assignment::Host);
            if is_hosts && state.may_run(vcpu) {
                self.vcpu_threads.release(vcpu);
            } else {
                self.vcpu_threads.hold(vcpu);
            }
        }
        for (cpu, view) in state.cpus.iter().enumerate() {
            let Assignment::Vcpu(vcpu) = view.assignment else {
                self.vcpu_threads.close(cpu);
                continue;
            };
            self.vcpu_threads.take_over(cpu, vcpu);
            self.vcpu_threads.place(vcpu, cpu);
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
