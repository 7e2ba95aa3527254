//! Directed yield: a vCPU that waits for another one donates its CPU for a moment.
//!
//! The kernel's `yield_to` serves only KVM, which calls it when a vCPU spins too long. Userspace
//! has only scheduling classes. So the target becomes a real-time thread, the waiter sleeps, and
//! then demotes the target again. The waiter takes a higher class meanwhile, or it could not wake
//! up to do so. The sleep bounds the donation: 50 us, some dozens of critical sections.
//!
//! Without the privilege the waiter calls `sched_yield`, and the host's scheduler decides.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use libc::pid_t;
use protocol::VcpuId;

use host::thread::{Class, set_class, set_own_class};
use vmm::vcpu::control::VcpuControl;

/// Length of a donation.
const DONATION: Duration = Duration::from_micros(50);

const TARGET: Class = Class::Fifo(1);
const WAITER: Class = Class::Fifo(2);

/// The directed yields of a guest's vCPUs, one at a time.
///
/// Two at once could revoke each other's classes: a target would stay real-time for good, because
/// its waiter lost the class in which it wakes up.
#[derive(Debug, Default)]
pub struct DirectedYield {
    /// A donation is in progress.
    is_busy: AtomicBool,
    /// A scheduler owns the classes of the vCPU threads.
    is_disabled: AtomicBool,
}

impl DirectedYield {
    /// Disables directed yield: a scheduler owns the classes of the vCPU threads from now on.
    pub fn disable(&self) {
        self.is_disabled.store(true, Ordering::Relaxed);
    }

    /// Lets the thread of `vcpu` run in place of the calling vCPU thread for a moment; returns
    /// whether it did.
    ///
    /// Otherwise the calling thread has called `sched_yield`: another donation is in progress, the
    /// host refuses real-time classes, or the vCPU does not exist. A disabled one does nothing.
    pub fn run(&self, vcpu: VcpuId, control: &VcpuControl) -> bool {
        if self.is_disabled.load(Ordering::Relaxed) {
            return false;
        }
        let is_free = !self.is_busy.swap(true, Ordering::Acquire);
        let has_run = is_free && control.tid(vcpu).is_some_and(donate_to);
        if is_free {
            self.is_busy.store(false, Ordering::Release);
        }
        if !has_run {
            thread::yield_now();
        }
        has_run
    }
}

/// Raises thread `tid` while the calling thread sleeps; returns whether the host allowed it.
fn donate_to(tid: pid_t) -> bool {
    if set_own_class(WAITER).is_err() {
        return false;
    }
    let is_raised = set_class(tid, TARGET).is_ok();
    if is_raised {
        thread::sleep(DONATION);
        // Fails only for a thread that has exited.
        let _ = set_class(tid, Class::Fair);
    }
    // Dropping to SCHED_OTHER needs no privilege.
    let _ = set_own_class(Class::Fair);
    is_raised
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Two vCPUs that yield to each other, or to a third one, would demote each other's target.
    #[test]
    fn yield_is_refused_while_another_is_in_progress_and_allowed_afterwards() {
        let (control, yields) = (VcpuControl::new(), DirectedYield::default());
        let vcpu = VcpuId::BOOT;
        let (entered, has_entered) = mpsc::channel();
        let (done, is_done) = mpsc::channel::<()>();
        thread::scope(|scope| {
            let control = &control;
            scope.spawn(move || {
                control.attach(vcpu);
                entered.send(()).unwrap();
                let _ = is_done.recv();
                control.detach(vcpu);
            });
            has_entered.recv().unwrap();
            yields.is_busy.store(true, Ordering::Relaxed);
            assert!(!yields.run(vcpu, control), "one is in progress");
            yields.is_busy.store(false, Ordering::Relaxed);
            let is_allowed = set_own_class(WAITER).is_ok();
            set_own_class(Class::Fair).unwrap();
            assert_eq!(yields.run(vcpu, control), is_allowed, "none is in progress, and the vCPU exists");
            assert!(!yields.is_busy.load(Ordering::Relaxed));
            let missing = VcpuId::new(1).unwrap();
            assert!(!yields.run(missing, control));
            assert!(!yields.is_busy.load(Ordering::Relaxed));
            drop(done);
        });
    }
}
