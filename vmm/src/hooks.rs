//! Run hooks: callbacks of the program that runs a guest.
//!
//! The monitor boots a guest and does nothing else. A program that measures guests, injects faults
//! or schedules vCPUs implements [`RunHooks`], and passes it to
//! [`Guest::start`](crate::guest::Guest::start). The default methods do nothing.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use host::cpus::Cpus;
use protocol::VcpuId;
use protocol::payload::note::Note;
use steal_time::StealTimeError;
use steal_time::host_vm::HostVm;
use steal_time::publisher::{Publisher, Selection};

use crate::memory::Ram;
use crate::vcpu::control::{VcpuControl, VcpuHandle};

/// Callbacks during a run, in the order of their first call.
///
/// Methods with a vCPU run on its thread, outside the guest, and delay the vCPU. The other methods
/// run on the thread that starts the guest and waits for it.
pub trait RunHooks: fmt::Debug + Send + Sync {
    /// Called when the payload is loaded. No vCPU runs yet.
    fn on_loaded(&self, _guest: &LoadedGuest<'_>) {}

    /// Returns the publisher of `selection`, or one that wraps it.
    ///
    /// # Errors
    /// [`StealTimeError`] if the host refuses. The guest does not start then.
    fn publisher(
        &self,
        selection: &Selection,
        vm: Arc<dyn HostVm>,
        cpus: &Cpus,
    ) -> Result<Arc<dyn Publisher>, StealTimeError> {
        selection.publisher(vm, cpus)
    }

    /// Called when `vcpu` writes `data` to `port`, and no device claims the port. Returns whether
    /// the write is handled; if not, the monitor ignores and counts it.
    fn on_exit(&self, _vcpu: VcpuId, _port: u16, _data: &[u8]) -> bool {
        false
    }

    /// Called after each event of `vcpu`, whose thread has `handle`.
    fn on_vcpu_event(&self, _vcpu: VcpuId, _handle: &VcpuHandle, _event: VcpuEvent) {}

    /// Called once when the user, the timeout or a hook ends the run. Returns how long the guest
    /// may take to end by itself; `None` ends it at once.
    fn on_stop_request(&self) -> Option<Duration> {
        None
    }

    /// Called when the guest has ended, before its vCPU threads are joined.
    fn on_guest_end(&self) {}
}

/// Hooks that do nothing.
#[derive(Clone, Copy, Debug)]
pub struct NoHooks;

impl RunHooks for NoHooks {}

/// A guest whose payload is loaded and whose vCPUs do not run yet.
#[derive(Debug)]
pub struct LoadedGuest<'a> {
    /// Guest memory.
    pub ram: &'a Ram,
    /// The note of a payload of this project; `None` for any other payload.
    pub note: Option<&'a Note>,
    /// The control of its vCPU threads.
    pub control: &'a Arc<VcpuControl>,
}

/// An event of a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VcpuEvent {
    /// A kick made the vCPU leave the guest. A hook may deschedule it now.
    Kicked,
    /// The vCPU was descheduled for this interval, and is about to run again.
    Descheduled(Descheduled),
}

/// An interval for which a vCPU was descheduled (times in ns of `CLOCK_MONOTONIC`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descheduled {
    /// When the deschedule was requested.
    pub requested_ns: u64,
    /// When the vCPU's thread had left the guest.
    pub from_ns: u64,
    /// When `preempted` was set.
    pub published_ns: u64,
    /// When the interval ended, just before `preempted` is cleared.
    pub to_ns: u64,
    /// The part of the interval for which the thread slept (ns): it was added to steal. The rest is
    /// run delay, which the kernel counts, the thread's CPU time, or a stop of the process.
    pub descheduled_ns: u64,
}
