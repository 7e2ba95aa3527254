//! The configuration of a guest.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use host::cpus::Cpus;
use protocol::payload::params::Start;
use steal_time::publisher::PublisherChoice;
use vmm_sys_util::eventfd::EventFd;

use crate::error::VmmError;
use crate::loader::{Image, Payload};

/// A guest to be started.
#[derive(Clone, Debug)]
pub struct GuestConfig {
    /// Number of vCPUs.
    pub vcpus: usize,
    /// Size of guest memory (MiB).
    pub memory_mib: u64,
    /// Host CPUs that the vCPU threads may use.
    pub cpus: Cpus,
    /// The publisher of the steal-time records.
    pub publisher: PublisherChoice,
    /// What to boot.
    pub payload: PayloadSource,
    /// How the vCPUs of a payload of this project start. Other payloads ignore it.
    pub start: Start,
    /// The command line. For a payload of this project, the monitor appends its boot parameters
    /// ([`protocol::payload::params`]).
    pub cmdline: String,
    /// The initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Whether standard input is connected to COM1. A payload of this project does not read it.
    pub stdin: bool,
    /// Ports whose writes signal an event instead of causing an exit.
    pub port_events: Vec<PortEvent>,
    /// When the monitor ends the run; `None` never.
    pub timeout: Option<Duration>,
}

/// A port whose writes KVM turns into an event, without an exit.
#[derive(Clone, Debug)]
pub struct PortEvent {
    /// The port.
    pub port: u16,
    /// The event that each write signals.
    pub event: Arc<EventFd>,
}

/// Where a payload comes from.
#[derive(Clone, Debug)]
pub enum PayloadSource {
    /// An ELF image that is part of this program.
    Embedded(&'static [u8]),
    /// A file.
    File {
        /// Path of the file.
        path: PathBuf,
        /// Whether it is a flat binary, loaded at 1 MiB.
        flat: bool,
    },
    /// A payload that the caller has opened.
    Opened(Arc<Payload>),
}

impl PayloadSource {
    /// Opens and parses the payload.
    ///
    /// # Errors
    /// [`VmmError::Host`] if the file cannot be read, [`VmmError::Load`] if it is no payload.
    pub fn open(&self) -> Result<Arc<Payload>, VmmError> {
        let (image, flat) = match self {
            Self::Embedded(bytes) => (Image::from_bytes("(embedded)", *bytes), false),
            Self::File { path, flat } => (Image::open("payload", path)?, *flat),
            Self::Opened(payload) => return Ok(Arc::clone(payload)),
        };
        Payload::parse(image, flat).map(Arc::new)
    }
}
