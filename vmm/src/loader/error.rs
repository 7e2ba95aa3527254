//! Load errors.

use std::io;
use std::path::PathBuf;

use crate::memory::MemoryError;

/// A payload, an initrd or a command line cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Reading a file failed.
    #[error("Cannot read {what} {}", path.display())]
    Read {
        /// `payload` or `initrd`.
        what: &'static str,
        /// Path of the file.
        path: PathBuf,
        /// The error of the host.
        source: io::Error,
    },
    /// The content of the payload is invalid, or does not suit this guest.
    #[error("Payload {name}: {defect}")]
    Payload {
        /// Path of the file, or the name of embedded bytes.
        name: String,
        /// The defect, and the cure where there is one.
        defect: String,
    },
    /// The initrd or the command line is too large.
    #[error("{what} has {bytes} bytes: {limit}")]
    TooLarge {
        /// `The initrd` or `The command line`.
        what: &'static str,
        /// Its length in bytes.
        bytes: u64,
        /// The limit, and the cure.
        limit: String,
    },
    /// Guest memory does not hold a range that was checked before.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// linux-loader cannot write the boot parameters.
    #[error("Cannot write the boot parameters to guest memory")]
    BootParams(#[from] linux_loader::configurator::Error),
}
