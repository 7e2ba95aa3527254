//! Directed yield: a vCPU that waits for another one donates its CPU for a moment.
//!
//! The kernel's `yield_to` serves only KVM, which calls it when a vCPU spins too long. Userspace
//! has only scheduling classes. So the target becomes a real-time thread, the waiter sleeps, and
//! then demotes the target again. The waiter takes a higher class meanwhile, or it could not wake
//! up to do so. The sleep bounds the donation: 50 us, some dozens of critical sections. Both threads
//! then get back what they had: class, nice value, slice and flags.
//!
//! The guest causes all this, so it has no effect unless the user's options ask for it, and all
//! donations of this process together take 5 % of one CPU at most.
//!
//! Without the privilege the waiter calls `sched_yield`, and the host's scheduler decides.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use libc::pid_t;
use protocol::VcpuId;

use host::clock;
use host::rate::RealtimeBudget;
use host::sync::lock;
use host::thread::{Attributes, Class, set_class, set_own_class};
use vmm::vcpu::control::VcpuControl;

/// Length of a donation.
const DONATION: Duration = Duration::from_micros(50);

const TARGET: Class = Class::Fifo(1);
const WAITER: Class = Class::Fifo(2);

/// What all guests of this process may spend in a real-time class: they may share a CPU.
static BUDGET: Mutex<RealtimeBudget> = Mutex::new(RealtimeBudget::EMPTY);

/// The directed yields of a guest's vCPUs, one at a time.
///
/// Two at once could revoke each other's classes: a target would stay real-time for good, because
/// its waiter lost the class in which it wakes up.
#[derive(Debug)]
pub struct DirectedYield {
    /// A donation is in progress.
    is_busy: AtomicBool,
    /// The user's options ask for it, and no scheduler owns the classes of the vCPU threads.
    is_enabled: AtomicBool,
    budget: &'static Mutex<RealtimeBudget>,
}

impl DirectedYield {
    /// Creates the directed yield of a guest, whose user's options ask for it or not.
    pub fn new(is_enabled: bool) -> Self {
        Self::within(&BUDGET, is_enabled)
    }

    fn within(budget: &'static Mutex<RealtimeBudget>, is_enabled: bool) -> Self {
        Self { is_busy: AtomicBool::new(false), is_enabled: AtomicBool::new(is_enabled), budget }
    }

    /// Disables directed yield: a scheduler owns the classes of the vCPU threads from now on.
    /// Returns after a donation in progress, whose end would change a class.
    pub fn disable(&self) {
        // In one order with the two accesses of `run`: that one sees the change, or this one the
        // donation
        self.is_enabled.store(false, Ordering::SeqCst);
        while self.is_busy.load(Ordering::SeqCst) {
            thread::sleep(DONATION);
        }
    }

    /// Returns whether a yield has any effect.
    pub fn is_enabled(&self) -> bool {
        self.is_enabled.load(Ordering::Relaxed)
    }

    /// Lets the thread of `vcpu` run in place of the calling vCPU thread for a moment; returns
    /// whether it did.
    ///
    /// Otherwise the calling thread has called `sched_yield`: another donation is in progress, the
    /// budget is spent, the host refuses real-time classes, or the vCPU does not exist. A disabled
    /// one does nothing.
    pub fn run(&self, vcpu: VcpuId, control: &VcpuControl) -> bool {
        if !self.is_enabled() {
            return false;
        }
        let is_free = !self.is_busy.swap(true, Ordering::SeqCst);
        let is_enabled = is_free && self.is_enabled.load(Ordering::SeqCst);
        let has_run = is_enabled && control.tid(vcpu).is_some_and(|tid| donate_to(tid, self.budget));
        if is_free {
            self.is_busy.store(false, Ordering::Release);
        }
        if !has_run {
            thread::yield_now();
        }
        has_run
    }
}

/// Raises thread `tid` while the calling thread sleeps, if the budget allows it; returns whether it
/// and the host did.
fn donate_to(tid: pid_t, budget: &Mutex<RealtimeBudget>) -> bool {
    let from_ns = clock::monotonic_ns();
    let need_ns = u64::try_from(DONATION.as_nanos()).unwrap_or(u64::MAX);
    if !lock(budget).may_spend(need_ns, from_ns) {
        return false;
    }
    let has_run = donate_within_budget(tid);
    lock(budget).charge(clock::monotonic_ns() - from_ns);
    has_run
}

fn donate_within_budget(tid: pid_t) -> bool {
    let (Ok(own), Ok(other)) = (Attributes::of(0), Attributes::of(tid)) else { return false };
    if set_own_class(WAITER).is_err() {
        return false;
    }
    let is_raised = set_class(tid, TARGET).is_ok();
    if is_raised {
        thread::sleep(DONATION);
        // Fails only for a thread that has exited.
        let _ = other.restore(tid);
    }
    // Dropping to what it had needs no privilege.
    let _ = own.restore(0);
    is_raised
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// A directed yield with a budget of its own: tests run side by side.
    fn yields_of_one_test() -> DirectedYield {
        DirectedYield::within(Box::leak(Box::new(Mutex::new(RealtimeBudget::EMPTY))), true)
    }

    /// Two vCPUs that yield to each other, or to a third one, would demote each other's target.
    #[test]
    fn yield_is_refused_while_another_is_in_progress_and_allowed_afterwards() {
        let (control, yields) = (VcpuControl::new(), yields_of_one_test());
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
            // The budget fills
            thread::sleep(Duration::from_millis(20));
            assert_eq!(yields.run(vcpu, control), is_allowed, "none is in progress, and the vCPU exists");
            assert!(!yields.is_busy.load(Ordering::Relaxed));
            let missing = VcpuId::new(1).unwrap();
            assert!(!yields.run(missing, control));
            assert!(!yields.is_busy.load(Ordering::Relaxed));
            drop(done);
        });
    }

    /// Each thread has another nice value and slice, as a user may have given them.
    #[test]
    fn storm_of_yields_leaves_class_nice_and_slice_of_both_threads_as_they_were() {
        let (control, yields) = (VcpuControl::new(), yields_of_one_test());
        let (entered, has_entered) = mpsc::channel();
        let (done, is_done) = mpsc::channel::<()>();
        thread::scope(|scope| {
            let control = &control;
            scope.spawn(move || {
                set_own_class(Class::Tuned { nice: 19, slice_ns: 7_000_000 }).unwrap();
                let tid = control.attach(VcpuId::BOOT).kick_handle().tid();
                entered.send(tid).unwrap();
                let _ = is_done.recv();
                control.detach(VcpuId::BOOT);
            });
            let target = has_entered.recv().unwrap();
            scope.spawn(move || {
                set_own_class(Class::Tuned { nice: 11, slice_ns: 2_000_000 }).unwrap();
                let before = [0, target].map(|tid| Attributes::of(tid).unwrap());
                for _ in 0..20_000 {
                    yields.run(VcpuId::BOOT, control);
                }
                assert_eq!([0, target].map(|tid| Attributes::of(tid).unwrap()), before);
                drop(done);
            });
        });
    }

    #[test]
    fn yield_without_the_option_does_nothing() {
        let yields = DirectedYield::new(false);
        assert!(!yields.is_enabled() && !yields.run(VcpuId::BOOT, &VcpuControl::new()));
    }
}
