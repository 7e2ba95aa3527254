//! Every error that can reach the user, printed once, as one line.

use crate::accuracy::AccuracyError;
use crate::bench::BenchError;
use crate::conformance::ConformanceError;
use crate::experiment::ExperimentError;
use crate::guest::LabGuestError;
use crate::output::OutputError;
use crate::session::SessionError;
use host::cpus::CpuError;
use host::error_chain;

/// Why the program could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A guest.
    #[error(transparent)]
    Guest(#[from] LabGuestError),
    /// Several, or who steers them.
    #[error(transparent)]
    Fleet(#[from] SessionError),
    /// A point of the demonstration.
    #[error(transparent)]
    Experiment(#[from] ExperimentError),
    /// A bench.
    #[error(transparent)]
    Bench(#[from] BenchError),
    /// The conformance suite.
    #[error(transparent)]
    Conformance(#[from] ConformanceError),
    /// The quality of bytes.
    #[error(transparent)]
    Accuracy(#[from] AccuracyError),
    /// The CPUs.
    #[error(transparent)]
    Cpus(#[from] CpuError),
    /// A file.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The payload's file.
    #[error("Cannot write the payload to {}", path.display())]
    WritePayload {
        /// Where it was to go.
        path: std::path::PathBuf,
        /// The host's reason.
        source: std::io::Error,
    },
    /// Standard output has gone away.
    #[error("Cannot print the result")]
    Print(#[source] std::io::Error),
}

impl Error {
    /// The exit status that tells of it: 2 for what makes no sense, 130 for Ctrl-C, 1 for the rest.
    pub fn status(&self) -> u8 {
        match self {
            Self::Guest(error) | Self::Fleet(SessionError::Guest(error)) if error.is_usage() => 2,
            Self::Cpus(error)
            | Self::Bench(BenchError::Cpus(error))
            | Self::Accuracy(AccuracyError::Cpus(error))
                if error.is_usage() =>
            {
                2
            }
            Self::Bench(BenchError::TooFewCpus(_)) => 2,
            Self::Experiment(ExperimentError::Interrupted)
            | Self::Bench(BenchError::Experiment(ExperimentError::Interrupted)) => 130,
            _ => 1,
        }
    }

    /// The error and what caused it, in one line.
    pub fn line(&self) -> String {
        error_chain::one_line(self)
    }
}
