//! The handle of one vCPU thread, and the handoff of a host CPU between two of them.
//!
//! A policy schedules and deschedules single vCPUs through their handles. It takes no lock to do
//! so, because a thread that holds the lock may itself be off its CPU.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, Thread};

use host::clock;
use host::kick::KickHandle;
use host::sync;

/// A vCPU thread as a policy sees it: it can be descheduled and scheduled.
#[derive(Debug)]
pub struct VcpuHandle {
    thread: Thread,
    kick: KickHandle,
    is_descheduled: AtomicBool,
    /// The handoff by which it got its CPU, if there was one.
    handoff: Mutex<Option<Arc<CpuHandoff>>>,
    /// When it was last descheduled (ns of `CLOCK_MONOTONIC`).
    requested_ns: AtomicU64,
    /// The finished intervals for which it was descheduled, in total (ns).
    descheduled_ns: AtomicU64,
    /// When its thread detached (ns of `CLOCK_MONOTONIC`); 0 before that.
    left_ns: AtomicU64,
}

impl VcpuHandle {
    /// Creates a handle of the calling thread.
    pub fn of_this_thread() -> Self {
        Self {
            thread: thread::current(),
            kick: KickHandle::of_this_thread(),
            is_descheduled: AtomicBool::new(false),
            handoff: Mutex::default(),
            requested_ns: AtomicU64::new(0),
            descheduled_ns: AtomicU64::new(0),
            left_ns: AtomicU64::new(0),
        }
    }

    /// Makes the thread leave the guest and wait until [`schedule`](Self::schedule).
    ///
    /// Returns at once; the thread leaves the guest a moment later.
    pub fn deschedule(&self) {
        self.requested_ns.store(clock::monotonic_ns(), Ordering::Relaxed);
        self.is_descheduled.store(true, Ordering::Release);
        // A thread that deschedules itself is outside the guest and needs no kick.
        if self.kick != KickHandle::of_this_thread() {
            self.kick.kick();
        }
    }

    /// Lets the thread run again.
    pub fn schedule(&self) {
        self.is_descheduled.store(false, Ordering::Release);
        self.unpark();
    }

    /// Returns whether the thread must stay out of the guest.
    pub fn is_descheduled(&self) -> bool {
        self.is_descheduled.load(Ordering::Acquire)
    }

    /// Returns when the thread detached from its control (ns of `CLOCK_MONOTONIC`); `None` before.
    pub fn left_ns(&self) -> Option<u64> {
        Some(self.left_ns.load(Ordering::Relaxed)).filter(|at| *at != 0)
    }

    /// Returns when the thread was last descheduled (ns of `CLOCK_MONOTONIC`).
    pub fn requested_ns(&self) -> u64 {
        self.requested_ns.load(Ordering::Relaxed)
    }

    /// Returns how long the thread was descheduled (ns), without its run delay: the finished
    /// intervals only.
    pub fn descheduled_ns(&self) -> u64 {
        self.descheduled_ns.load(Ordering::Relaxed)
    }

    /// Adds an interval of `ns` for which the thread was descheduled.
    pub(in crate::vcpu) fn add_descheduled(&self, ns: u64) {
        self.descheduled_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// Leaves the CPU that a [`CpuHandoff`] gave to this vCPU. The next vCPU there is scheduled.
    pub fn leave_cpu(&self) {
        let handoff = self.handoff().take();
        if let Some(handoff) = handoff {
            handoff.leave(self);
        }
    }

    /// Returns the handle that kicks the thread.
    pub fn kick_handle(&self) -> KickHandle {
        self.kick
    }

    /// Wakes the thread to read its requests again. A wake-up before the wait is not lost.
    pub(super) fn unpark(&self) {
        self.thread.unpark();
    }

    /// Records that the thread detaches, and leaves its CPU.
    pub(super) fn detach(&self) {
        self.left_ns.store(clock::monotonic_ns(), Ordering::Relaxed);
        self.leave_cpu();
    }

    fn handoff(&self) -> MutexGuard<'_, Option<Arc<CpuHandoff>>> {
        sync::lock(&self.handoff)
    }
}

/// A host CPU that runs one vCPU at a time: the next one starts when the present one has left.
///
/// A descheduled thread leaves once it is outside the guest and its `preempted` is set. The thread
/// that leaves schedules the next one. Woken earlier, on the same CPU, the next thread would
/// preempt the one that is about to leave. Then `preempted` would be set late, and a lock held by
/// that vCPU would stay taken: a lock-holder preemption made by the monitor.
#[derive(Debug, Default)]
pub struct CpuHandoff(Mutex<Occupancy>);

#[derive(Debug, Default)]
struct Occupancy {
    present: Option<Arc<VcpuHandle>>,
    next: Option<Arc<VcpuHandle>>,
}

impl CpuHandoff {
    /// Gives the CPU to `handle`: at once if it is free, else when the present vCPU leaves, which
    /// the caller has descheduled. Replaces an earlier choice of the next vCPU.
    pub fn give(self: &Arc<Self>, handle: &Arc<VcpuHandle>) {
        let mut occupancy = self.lock();
        occupancy.next = None;
        match &occupancy.present {
            Some(present) if !Arc::ptr_eq(present, handle) => occupancy.next = Some(Arc::clone(handle)),
            _ => self.occupy(occupancy, handle),
        }
    }

    /// Frees the CPU if `handle` is on it, and gives it to the next vCPU.
    pub fn leave(self: &Arc<Self>, handle: &VcpuHandle) {
        let mut occupancy = self.lock();
        let is_present = |present: &Arc<VcpuHandle>| std::ptr::eq(Arc::as_ptr(present), handle);
        if occupancy.present.as_ref().is_some_and(is_present) {
            occupancy.present = None;
            if let Some(next) = occupancy.next.take() {
                self.occupy(occupancy, &next);
            }
        }
    }

    /// Forgets the next vCPU: the CPU goes idle when the present one leaves.
    pub fn close(&self) {
        self.lock().next = None;
    }

    fn occupy(self: &Arc<Self>, mut occupancy: MutexGuard<'_, Occupancy>, handle: &Arc<VcpuHandle>) {
        occupancy.present = Some(Arc::clone(handle));
        *handle.handoff() = Some(Arc::clone(self));
        drop(occupancy);
        if handle.is_descheduled() {
            handle.schedule();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Occupancy> {
        sync::lock(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handle() -> Arc<VcpuHandle> {
        let handle = Arc::new(VcpuHandle::of_this_thread());
        handle.deschedule();
        handle
    }

    #[test]
    fn next_vcpu_is_scheduled_when_the_present_one_has_left_and_not_before() {
        let (cpu, first, second) = (Arc::new(CpuHandoff::default()), handle(), handle());
        cpu.give(&first);
        assert!(!first.is_descheduled(), "the CPU was free");
        first.deschedule();
        cpu.give(&second);
        assert!(second.is_descheduled());
        first.leave_cpu();
        assert!(!second.is_descheduled());
        second.leave_cpu();
        cpu.give(&first);
        assert!(!first.is_descheduled());
    }

    #[test]
    fn last_choice_of_the_next_vcpu_replaces_the_earlier_ones() {
        let (cpu, first, second, third) = (Arc::new(CpuHandoff::default()), handle(), handle(), handle());
        cpu.give(&first);
        first.deschedule();
        cpu.give(&second);
        cpu.give(&third);
        first.leave_cpu();
        assert!(second.is_descheduled() && !third.is_descheduled(), "the last choice counts");
        third.deschedule();
        cpu.give(&second);
        cpu.give(&third);
        assert!(!third.is_descheduled(), "it has not left, and stays");
        third.leave_cpu();
        assert!(second.is_descheduled(), "there was no next vCPU");
        cpu.give(&second);
        cpu.close();
        second.deschedule();
        cpu.give(&first);
        cpu.close();
        second.leave_cpu();
        assert!(first.is_descheduled());
    }
}
