//! Why quality cannot be measured.

use std::io;

use crate::guest::RunError;
use host::cpus::{CpuError, Cpus};
use host::perf::PerfError;
use vmm::vm::StateError;

/// Accuracy could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum AccuracyError {
    /// The guest could not be run.
    #[error(transparent)]
    Guest(#[from] RunError),
    /// Its state could not be had.
    #[error(transparent)]
    State(#[from] StateError),
    /// The oracle's own witness.
    #[error(transparent)]
    Perf(#[from] PerfError),
    /// The CPUs.
    #[error(transparent)]
    Cpus(#[from] CpuError),
    /// Somebody must look while the vCPU runs.
    #[error(
        "The oracle needs a CPU of its own beside the vCPU's, and may use only CPUs {0} (try another --cpus)"
    )]
    TooFewCpus(Cpus),
    /// A thread or an account.
    #[error("Cannot {what} for the oracle")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The host's reason.
        source: io::Error,
    },
    /// The guest ended otherwise than by its own reset.
    #[error("The guest that was to be watched did not end well: {0}")]
    Ended(String),
    /// The user ended it.
    #[error("Interrupted")]
    Interrupted,
    /// The guest did not do its part.
    #[error("The guest that was to be watched {0}")]
    Idle(&'static str),
}

pub(super) fn host(what: &'static str) -> impl FnOnce(io::Error) -> AccuracyError {
    move |source| AccuracyError::Host { what, source }
}
