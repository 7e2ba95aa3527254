//! Configuration of a guest of the lab: the monitor's configuration and the payload's workload.

use std::time::Duration;

use protocol::payload::params::Start;

use crate::fault_injection::Faults;
use crate::payload;
use host::cpus::Cpus;
use steal_time::publisher::{PublisherChoice, PublisherKind};
use vmm::guest::{GuestConfig, PayloadSource};

/// Configuration of a guest of the lab.
#[derive(Clone, Debug)]
pub struct LabConfig {
    /// The monitor's configuration.
    pub guest: GuestConfig,
    /// Parameters of the workload, from typed options. They win over the same parameters in
    /// `guest.cmdline`. A payload of another project does not take them.
    pub options: String,
    /// Parameters that make the payload publish hints for a policy. The command line and the
    /// options win over them.
    pub hints: String,
    /// Faults to inject into publication.
    pub faults: Option<Faults>,
    /// Whether the first line on standard error names what is missing for the best publisher.
    pub announces: bool,
    /// Whether the doorbell port signals the scheduler by an eventfd, without an exit to userspace.
    pub doorbell: bool,
}

/// Memory of a guest with the embedded payload (MiB): room for the stacks of 255 vCPUs.
const EMBEDDED_MIB: u64 = 32;

impl LabConfig {
    /// A guest of `vcpus` vCPUs on `cpus` with the embedded payload and workload `options`, which
    /// is ended after `timeout`.
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

    /// A guest with workload `options`, without hints, faults and doorbell, which announces nothing.
    pub fn new(guest: GuestConfig, options: String) -> Self {
        Self { guest, options, hints: String::new(), faults: None, announces: false, doorbell: false }
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
