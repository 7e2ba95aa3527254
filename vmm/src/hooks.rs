//! Run hooks: the places where a program built on this monitor takes part in a run.
//!
//! The monitor boots a guest and nothing else. A lab that measures guests, injects faults or schedules vCPUs implements
//! [`RunHooks`] and passes it to [`Guest::start`](crate::guest::Guest::start). Every method has a default that does nothing.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use protocol::VcpuId;
use protocol::payload::note::Note;

use crate::memory::Ram;
use crate::vcpu::control::{VcpuControl, VcpuHandle};
use host::cpus::Cpus;
use steal_time::host_vm::HostVm;
use steal_time::publisher::{Publisher, Selection, StealTimeError};

/// Callbacks of a run. Each names the thread that calls it.
pub trait RunHooks: fmt::Debug + Send + Sync {
    /// Makes the publisher that `selection` settled on, or one that wraps it. Called on the thread that starts the guest.
    ///
    /// # Errors
    /// The host's refusal; the guest does not start.
    fn publisher(
        &self,
        selection: &Selection,
        vm: Arc<dyn HostVm>,
        cpus: &Cpus,
    ) -> Result<Arc<dyn Publisher>, StealTimeError> {
        selection.publisher(vm, cpus)
    }

    /// The payload is in memory and no vCPU runs yet. Called on the thread that starts the guest.
    fn on_loaded(&self, _guest: &LoadedGuest<'_>) {}

    /// `vcpu` wrote `data` to `port`, which no device claims. Called on the vCPU's thread, outside the guest. Returns whether the
    /// write is handled.
    fn on_exit(&self, _vcpu: VcpuId, _port: u16, _data: &[u8]) -> bool {
        false
    }

    /// Something happened to `vcpu`. Called on the vCPU's thread, outside the guest.
    fn on_vcpu_event(&self, _vcpu: VcpuId, _handle: &VcpuHandle, _event: VcpuEvent) {}

    /// The run is to end early. Returns how long the guest gets to end by itself; `None` ends it now. Called on the thread
    /// that waits for the guest.
    fn on_stop_request(&self) -> Option<Duration> {
        None
    }

    /// The guest ended and its vCPU threads are about to be joined. Called on the thread that waits for the guest.
    fn on_guest_end(&self) {}
}

/// No hooks: the plain monitor.
#[derive(Clone, Copy, Debug)]
pub struct NoHooks;

impl RunHooks for NoHooks {}

/// A guest whose payload is loaded and whose vCPUs do not run yet.
#[derive(Debug)]
pub struct LoadedGuest<'a> {
    /// Its memory.
    pub ram: &'a Ram,
    /// The note of a payload of this project; `None` for any other payload.
    pub note: Option<&'a Note>,
    /// Stops, pauses and deschedules its vCPUs.
    pub control: &'a Arc<VcpuControl>,
}

/// An event in the life of a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VcpuEvent {
    /// A kick made the vCPU leave the guest.
    Kicked,
    /// The monitor descheduled the vCPU, and lets it run again from now on.
    Descheduled(Descheduled),
}

/// An interval in which the monitor kept a vCPU from running (times in ns of `CLOCK_MONOTONIC`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descheduled {
    /// When the deschedule was requested.
    pub requested_ns: u64,
    /// When the vCPU's thread was outside the guest.
    pub from_ns: u64,
    /// When `preempted` was set.
    pub published_ns: u64,
    /// When the interval ended: a moment before `preempted` was cleared.
    pub to_ns: u64,
    /// How much of the interval was added to steal (ns). The rest, from the release on, is run delay.
    pub descheduled_ns: u64,
}
