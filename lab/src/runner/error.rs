//! The error of everything that measures.

use std::fmt::Display;

use crate::guest::LabGuestError;
use crate::output::OutputError;
use crate::session::SessionError;
use host::cpus::{CpuError, Cpus};
use steal_time::bpf::BpfError;

/// Why something could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    /// A guest could not be run.
    #[error(transparent)]
    Guest(#[from] LabGuestError),
    /// Guests under a policy, or the load beside them, could not be run.
    #[error(transparent)]
    Session(SessionError),
    /// A guest or process ended without figures, or the host could not be observed.
    #[error("Cannot measure {what}: {how}")]
    Failed {
        /// What was measured: a point, a guest, a command line.
        what: String,
        /// What happened.
        how: String,
    },
    /// The user ended the run.
    #[error("Interrupted")]
    Interrupted,
    /// The CPUs cannot be used.
    #[error(transparent)]
    Cpus(#[from] CpuError),
    /// There are too few CPUs for the comparison.
    #[error("This bench compares one CPU with two, and may use only CPUs {0} (try another --cpus)")]
    TooFewCpus(Cpus),
    /// The measured BPF program cannot be loaded or read.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// The results cannot be written.
    #[error(transparent)]
    Output(#[from] OutputError),
}

impl RunnerError {
    /// Says that `what` could not be measured because of `how`.
    pub fn failed(what: impl Display, how: impl Display) -> Self {
        Self::Failed { what: what.to_string(), how: how.to_string() }
    }
}

impl From<SessionError> for RunnerError {
    /// A session of one guest fails like that guest.
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::Guest(error) => Self::Guest(error),
            error => Self::Session(error),
        }
    }
}
