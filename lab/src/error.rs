//! Errors of the lab, and the exit statuses of `vmm-lab`. An error is printed once, in one line.

use std::fmt::Display;
use std::io;
use std::time::Duration;

use crate::guest::RunError;
use crate::output::OutputError;
use host::cpus::{CpuError, Cpus};
use host::error_chain;
use host::perf::PerfError;
use host::termination::{self, Cause};
use steal_time::bpf::BpfError;
use vmm::VmmError;

/// The exit status of a command line that makes no sense.
const USAGE: u8 = 2;

/// A command of the lab failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A guest could not be run.
    #[error(transparent)]
    Guest(#[from] RunError),
    /// A guest or process ended without figures, or the host could not be observed.
    #[error("Cannot measure {what}: {how}")]
    Failed {
        /// What was measured: a point, a guest, a command line.
        what: String,
        /// What happened.
        how: String,
    },
    /// There are too few CPUs for the comparison.
    #[error("This bench compares one CPU with two, and may use only CPUs {0} (try another --cpus)")]
    TooFewCpus(Cpus),
    /// The measured BPF program cannot be loaded or read.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// The state of a guest could not be read, saved or restored.
    #[error(transparent)]
    State(#[from] VmmError),
    /// Perf cannot record context switches.
    #[error(transparent)]
    Perf(#[from] PerfError),
    /// This process may not use the CPUs.
    #[error(transparent)]
    Cpus(#[from] CpuError),
    /// A results file cannot be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The oracle has no CPU to sample from.
    #[error(
        "The oracle needs a CPU of its own beside the vCPU's, and may use only CPUs {0} (try another --cpus)"
    )]
    NoOracleCpu(Cpus),
    /// The host refused something that a measurement needs.
    #[error("Cannot {what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The host's reason.
        source: io::Error,
    },
    /// A guest did not behave as its test requires.
    #[error("The guest under test {0}")]
    TestGuest(String),
    /// QEMU could not be run.
    #[error("Cannot play scene {scene} under QEMU ({accelerator}): {how}")]
    Qemu {
        /// The scene.
        scene: &'static str,
        /// `kvm` or `tcg`.
        accelerator: &'static str,
        /// What happened.
        how: String,
    },
    /// Standard output cannot be written.
    #[error("Cannot print the result")]
    Print(#[source] io::Error),
    /// Ctrl-C ended a guest.
    #[error("Interrupted")]
    Interrupted,
}

impl Error {
    /// A guest under test that did not behave: `how` completes "The guest under test".
    pub fn test_guest(how: impl Into<String>) -> Self {
        Self::TestGuest(how.into())
    }

    /// `what` could not be measured because of `how`.
    pub fn failed(what: impl Display, how: impl Display) -> Self {
        Self::Failed { what: what.to_string(), how: how.to_string() }
    }

    /// Maps the host's reason to an error: `what` completes "Cannot".
    pub fn host(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { what, source }
    }

    /// Whether the work was ended from outside. Once termination is requested, guests end early and
    /// waits fail, so any error counts.
    pub fn is_interrupted(&self) -> bool {
        matches!(self, Self::Interrupted) || termination::requested().is_some()
    }

    /// Whether this host cannot provide the publisher. Other publishers may work.
    pub fn is_of_the_publisher(&self) -> bool {
        match self {
            Self::Guest(error) => error.is_of_the_publisher(),
            _ => false,
        }
    }

    /// The exit status: 2 for a command line that makes no sense, that of the cause once
    /// termination is requested, 1 otherwise.
    pub fn status(&self) -> u8 {
        let is_usage = match self {
            Self::Guest(error) => error.is_usage(),
            Self::Cpus(error) => error.is_usage(),
            Self::TooFewCpus(_) => true,
            _ => false,
        };
        match self {
            _ if is_usage => USAGE,
            _ if self.is_interrupted() => interrupted_status(true),
            _ => 1,
        }
    }

    /// The error and its sources, in one line.
    pub fn line(&self) -> String {
        error_chain::one_line(self)
    }
}

/// The exit status of a command that has printed its results, and that a signal or the deadline may
/// have cut short.
pub fn interrupted_status(was_interrupted: bool) -> u8 {
    let cause = termination::requested().unwrap_or(Cause::Interrupted);
    if was_interrupted { cause.status() } else { 0 }
}

/// Sleeps for `time`.
///
/// # Errors
/// [`Error::Interrupted`] once termination is requested.
pub fn pause(time: Duration) -> Result<(), Error> {
    termination::wait(time).map_or(Ok(()), |_| Err(Error::Interrupted))
}
