//! What is to be run, and on what.

use std::path::PathBuf;
use std::time::Duration;

use protocol::words::Start;

use crate::host::cpus::Cpus;
use crate::publisher::Choice;
use crate::publisher::faulty::Faults;

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
    /// Words from typed options: for our payload only.
    pub options: String,
    /// An initrd.
    pub initrd: Option<PathBuf>,
    /// Whether what arrives at standard input goes to COM1 of a foreign payload. Ours does not listen.
    pub stdin: bool,
    /// When the run ends, if the guest does not end it.
    pub timeout: Option<Duration>,
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
