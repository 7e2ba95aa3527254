//! Configuration of a guest of the lab: the monitor's, and what the payload is asked to do.

use std::time::Duration;

use protocol::payload::params::Start;

use crate::fault_injection::Faults;
use crate::payload;
use host::cpus::Cpus;
use steal_time::publisher::{PublisherChoice, PublisherKind};
use vmm::guest::{GuestConfig, PayloadSource};

/// A guest that the lab runs.
#[derive(Clone, Debug)]
pub struct LabConfig {
    /// What the monitor needs to know.
    pub guest: GuestConfig,
    /// Parameters of the workload, from typed options. Only this project's payload takes them. They win over the same
    /// parameters on `guest.cmdline`.
    pub options: String,
    /// Parameters that switch hints on for a policy. The command line and the options win over them.
    pub hints: String,
    /// Faults to inject into publication.
    pub faults: Option<Faults>,
    /// Whether the doorbell signals the scheduler, without an exit of the vCPU.
    pub doorbell: bool,
}

/// Memory of a guest with the embedded payload (MiB): room for it, and for its 255 vCPUs' stacks.
const EMBEDDED_MIB: u64 = 32;

impl LabConfig {
    /// A guest of `vcpus` vCPUs on `cpus` with the embedded payload and workload `options`, for at most `timeout`.
    pub fn embedded(
        vcpus: usize,
        cpus: Cpus,
        publisher: PublisherKind,
        options: String,
        timeout: Duration,
    ) -> Self {
        Self::new(
            GuestConfig {
                vcpus,
                memory_mib: EMBEDDED_MIB,
                cpus,
                publisher: PublisherChoice::Only(publisher),
                payload: PayloadSource::Embedded(payload::BYTES),
                start: Start::Direct,
                cmdline: String::new(),
                initrd: None,
                stdin: false,
                port_events: Vec::new(),
                timeout: Some(timeout),
            },
            options,
        )
    }

    /// A guest with workload `options`, without hints and faults.
    pub fn new(guest: GuestConfig, options: String) -> Self {
        Self { guest, options, hints: String::new(), faults: None, doorbell: false }
    }

    /// The same, with the monitor's part changed by `change`.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut GuestConfig)) -> Self {
        change(&mut self.guest);
        self
    }

    /// The same guest on other host CPUs.
    #[must_use]
    pub fn on(mut self, cpus: Cpus) -> Self {
        self.guest.cpus = cpus;
        self
    }
}
