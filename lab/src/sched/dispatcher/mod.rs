//! The dispatcher: delivers events to the policy and applies its decisions.
//!
//! It runs under one lock, on the driver thread or, with `deschedule`, on a vCPU thread whose slice
//! ended. A policy cannot harm more than its own session: invalid decisions are refused, a policy
//! that panics is not called again, and one that starves a vCPU ends the session.

mod inner;
mod watchdog;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use self::inner::Inner;
use super::hints::ScheduledGuest;
use super::log::Log;
use super::mechanism::Mechanism;
use super::stop_reason::StopReason;
use crate::guest::{GuestScheduler, RunError};
use crate::policy::{Assignment, CpuView, Ns, Policy};
use host::clock;
use host::sync;
use vmm::vcpu::control::VcpuHandle;

/// Delivers events to the policy and applies its decisions.
#[derive(Debug)]
pub struct Dispatcher {
    /// When the next event is due (ns, `CLOCK_MONOTONIC`), readable without the lock.
    next_due: AtomicU64,
    inner: Mutex<Inner>,
}

/// What a dispatcher decided, until it ended.
#[derive(Debug)]
pub(super) struct Decided {
    /// When scheduling ended (ns, `CLOCK_MONOTONIC`).
    pub(super) ended_ns: Ns,
    /// Why scheduling stopped before the guests ended; `None` if it did not.
    pub(super) stop_reason: Option<StopReason>,
    /// The decisions.
    pub(super) log: Log,
}

impl Dispatcher {
    /// Creates a dispatcher that has not called `policy` yet.
    ///
    /// # Errors
    /// [`RunError::CpuTime`] if the policy needs what the host does not report.
    pub(super) fn new(
        policy: Box<dyn Policy>,
        mechanism: Box<dyn Mechanism>,
        guests: Vec<ScheduledGuest>,
        cpus: usize,
        starvation: Duration,
    ) -> Result<Self, RunError> {
        let inner = Inner::new(policy, mechanism, guests, cpus, starvation)?;
        Ok(Self { next_due: AtomicU64::new(u64::MAX), inner: Mutex::new(inner) })
    }

    /// Delivers the first events.
    pub(super) fn begin(&self) {
        self.with(Inner::begin);
    }

    /// Delivers all events that are due, and those that the guests caused. Ends the session if the
    /// policy starves a vCPU.
    ///
    /// The process was stopped for `stopped_ns` so far.
    pub(super) fn dispatch(&self, stopped_ns: Ns) {
        self.with(|inner| {
            inner.dispatch(None);
            inner.check_starvation(stopped_ns);
        });
    }

    /// Returns when the next event is due (ns, `CLOCK_MONOTONIC`).
    pub(super) fn next_due(&self) -> Ns {
        self.next_due.load(Ordering::Relaxed)
    }

    /// Returns when the next event is due that no vCPU thread times.
    ///
    /// A vCPU thread times its own slice; the driver steps in `slack` (ns) after its end.
    pub(super) fn next_untimed(&self, slack: Ns) -> Ns {
        let inner = self.lock();
        let due = |cpu: &CpuView| match cpu.assignment {
            Assignment::Host => Ns::MAX,
            Assignment::Idle => cpu.until,
            Assignment::Vcpu(_) => cpu.until.saturating_add(slack),
        };
        let alarm = inner.schedule.next_alarm().unwrap_or(Ns::MAX);
        inner.schedule.state().cpus.iter().map(due).min().unwrap_or(Ns::MAX).min(alarm)
    }

    /// Removes the vCPUs of `guest`, whose threads exit.
    pub(super) fn remove_guest(&self, guest: usize) {
        self.with(|inner| inner.remove_guest(guest));
    }

    /// Stops scheduling: the host's scheduler runs all vCPUs from now on.
    pub(super) fn finish(&self, reason: Option<StopReason>) {
        self.lock().finish(reason);
        self.next_due.store(u64::MAX, Ordering::Relaxed);
    }

    /// Returns the decisions, and leaves an empty log.
    pub(super) fn take(&self) -> Decided {
        self.lock().take()
    }

    /// Handles a kick of the calling vCPU thread, which is outside the guest. If its slice is over,
    /// it is descheduled afterwards.
    fn on_kick(&self, handle: &VcpuHandle) {
        // Most kicks have other reasons.
        if clock::monotonic_ns() < self.next_due() {
            return;
        }
        // Each thread serves its own CPU: it is outside the guest, so its hints are final. Other
        // CPUs have their own kicks.
        self.with(|inner| {
            let cpu = inner.guests.vcpu_of(handle).and_then(|vcpu| inner.schedule.state().cpu_of(vcpu));
            if cpu.is_some() {
                inner.dispatch(cpu);
            }
        });
    }

    fn with(&self, act: impl FnOnce(&mut Inner)) {
        let mut inner = self.lock();
        if !inner.is_over() {
            act(&mut inner);
        }
        let due = if inner.is_over() { None } else { inner.schedule.next_due() };
        self.next_due.store(due.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        sync::lock(&self.inner)
    }
}

/// The scheduler of one guest: its share of the dispatcher.
#[derive(Debug)]
pub(super) struct GuestDispatcher {
    pub(super) dispatcher: Arc<Dispatcher>,
    pub(super) guest: usize,
    /// Whether vCPU threads time their own slices.
    pub(super) times_slices: bool,
}

impl GuestScheduler for GuestDispatcher {
    fn on_kick(&self, handle: &VcpuHandle) {
        if self.times_slices {
            self.dispatcher.on_kick(handle);
        }
    }

    fn release_all(&self) {
        self.dispatcher.finish(None);
    }

    fn on_guest_end(&self) {
        self.dispatcher.remove_guest(self.guest);
    }
}
