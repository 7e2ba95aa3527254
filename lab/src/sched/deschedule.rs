//! Mechanism `deschedule`: vCPU threads that must not run leave the guest and wait.
//!
//! It needs no privilege: a kick, and a wait for a wake-up. The thread sets `preempted` before it
//! waits, and adds the time that it waited to steal afterwards. The kernel sees a sleeping thread
//! and counts no run delay. A CPU that the policy leaves idle is idle.
//!
//! The threads time their slices themselves: a timer of its own kicks each thread at the end of its
//! slice. The thread calls the dispatcher, sets its `preempted`, wakes the next thread of its CPU,
//! and waits. No other thread has to be scheduled first.

use std::io;

use super::mechanism::{Mechanism, MechanismKind};
use super::vcpu_threads::VcpuThreads;
use crate::policy::{Assignment, Ns, SchedState};
use host::kick;
use host::timer::ThreadTimer;

/// Mechanism `deschedule`.
#[derive(Debug)]
pub(super) struct DescheduleMechanism {
    vcpu_threads: VcpuThreads,
    timers: Vec<SliceTimer>,
}

/// The timer of a vCPU thread, which kicks it at the end of its slice.
#[derive(Debug)]
struct SliceTimer {
    timer: ThreadTimer,
    /// The expiry that was last set (ns, `CLOCK_MONOTONIC`).
    expires_ns: Ns,
}

impl DescheduleMechanism {
    pub(super) fn new(vcpu_threads: VcpuThreads) -> io::Result<Self> {
        let timer = |vcpu| {
            let timer = ThreadTimer::new(vcpu_threads.tid(vcpu), kick::signal())?;
            Ok(SliceTimer { timer, expires_ns: 0 })
        };
        let timers = (0..vcpu_threads.count()).map(timer).collect::<io::Result<_>>()?;
        Ok(Self { vcpu_threads, timers })
    }
}

impl Mechanism for DescheduleMechanism {
    fn kind(&self) -> MechanismKind {
        MechanismKind::Deschedule
    }

    fn vcpu_threads(&mut self) -> &mut VcpuThreads {
        &mut self.vcpu_threads
    }

    fn apply(&mut self, state: &SchedState) {
        let threads = &mut self.vcpu_threads;
        // Deschedule first: the kicks are in flight while the other threads are woken.
        for vcpu in (0..threads.count()).filter(|vcpu| state.is_unassigned(*vcpu)) {
            if state.is_host_scheduled(state.home_of(vcpu)) && state.may_run(vcpu) {
                threads.schedule(vcpu);
            } else {
                threads.deschedule(vcpu);
            }
        }
        for (cpu, view) in state.cpus.iter().enumerate() {
            let Assignment::Vcpu(vcpu) = view.assignment else {
                threads.cancel_handoff(cpu);
                continue;
            };
            threads.hand_off(cpu, vcpu);
            threads.pin(vcpu, cpu);
            if let Some(slice) = self.timers.get_mut(vcpu)
                && slice.expires_ns != view.until
            {
                slice.expires_ns = view.until;
                // After a failure the driver ends the slice, a little later.
                let _ = slice.timer.set(view.until);
            }
        }
    }
}
