//! What is to be run, and on what.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use protocol::payload::params::Start;
use vmm_sys_util::eventfd::EventFd;

use crate::loader::{Image, LoadError, Payload};
use host::cpus::Cpus;
use steal_time::publisher::PublisherChoice;

/// A guest that is to be run.
#[derive(Clone, Debug)]
pub struct GuestConfig {
    /// How many vCPUs.
    pub vcpus: usize,
    /// How much memory (MiB).
    pub memory_mib: u64,
    /// Host CPUs that the vCPU threads may use.
    pub cpus: Cpus,
    /// Who keeps the records true.
    pub publisher: PublisherChoice,
    /// What runs.
    pub payload: PayloadSource,
    /// How vCPUs of our own payload start.
    pub start: Start,
    /// The command line. A payload of this project reads parameters there ([`protocol::payload::params`]), and gets those of its boot
    /// behind them.
    pub cmdline: String,
    /// An initrd.
    pub initrd: Option<PathBuf>,
    /// Whether what arrives at standard input goes to COM1 of a foreign payload. Ours does not listen.
    pub stdin: bool,
    /// Ports whose writes KVM turns into an event: no vCPU leaves the guest for them.
    pub port_events: Vec<PortEvent>,
    /// When the run ends, if the guest does not end it.
    pub timeout: Option<Duration>,
}

/// A port whose writes KVM turns into an event.
#[derive(Clone, Debug)]
pub struct PortEvent {
    /// The port.
    pub port: u16,
    /// The event that each write signals.
    pub event: Arc<EventFd>,
}

/// Where a payload comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PayloadSource {
    /// An ELF image in this program's own memory.
    Embedded(&'static [u8]),
    /// A file.
    File {
        /// Its path.
        path: PathBuf,
        /// Load it as it is at 1 MiB.
        flat: bool,
    },
}

impl PayloadSource {
    /// Opens the payload and finds out what it is.
    ///
    /// # Errors
    /// [`LoadError`] if it cannot be read, or is nothing that this monitor can run.
    pub fn open(&self) -> Result<Payload, LoadError> {
        match self {
            Self::Embedded(bytes) => Payload::parse(Image::from_bytes("(embedded)", *bytes), false),
            Self::File { path, flat } => Payload::parse(Image::open("payload", path)?, *flat),
        }
    }
}
