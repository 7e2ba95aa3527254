//! What is to be run, and on what.

use std::path::PathBuf;
use std::time::Duration;

use protocol::words::Start;

use crate::host::cpus::Cpus;
use crate::publisher::faulty::Faults;
use crate::publisher::{Choice, PublisherKind};

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
    pub publisher: Choice,
    /// What is to be wrong with what they say.
    pub faults: Option<Faults>,
    /// What runs.
    pub payload: PayloadSource,
    /// How vCPUs of our own payload start.
    pub start: Start,
    /// The command line. For our payload, words of [`protocol::words`].
    pub cmdline: String,
    /// Words that our payload gets before all others, and a foreign one does not.
    pub tells: String,
    /// Words from typed options: for our payload only.
    pub options: String,
    /// An initrd.
    pub initrd: Option<PathBuf>,
    /// Whether what arrives at standard input goes to COM1 of a foreign payload. Ours does not listen.
    pub stdin: bool,
    /// Whether the doorbell rings for whoever steers, not for a vCPU thread.
    pub bell: bool,
    /// When the run ends, if the guest does not end it.
    pub timeout: Option<Duration>,
}

/// Memory of a guest with our own payload (MiB): room for it, and for its 255 vCPUs' stacks.
const EMBEDDED_MIB: u64 = 32;

impl GuestConfig {
    /// A guest of `vcpus` vCPUs on `cpus` with our own payload, which does what `words` say, for at most `timeout`.
    pub fn embedded(
        vcpus: usize,
        cpus: Cpus,
        publisher: PublisherKind,
        words: String,
        timeout: Duration,
    ) -> Self {
        Self {
            vcpus,
            memory_mib: EMBEDDED_MIB,
            cpus,
            publisher: Choice::Only(publisher),
            faults: None,
            payload: PayloadSource::Embedded,
            start: Start::Direct,
            cmdline: String::new(),
            tells: String::new(),
            options: words,
            initrd: None,
            stdin: false,
            bell: false,
            timeout: Some(timeout),
        }
    }
}

/// Where a payload comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PayloadSource {
    /// The one that this program carries.
    Embedded,
    /// A file.
    File {
        /// Its path.
        path: PathBuf,
        /// Load it as it is at 1 MiB.
        flat: bool,
    },
}
