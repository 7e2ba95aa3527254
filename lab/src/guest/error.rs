//! Why a guest, or a session of guests, could not be run.

use std::io;

use crate::policy::parameters::ParameterError;
use crate::sched::mechanism::MechanismKind;
use vmm::VmmError;

/// A guest, or a session of guests, could not be run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The monitor cannot run the guest.
    #[error(transparent)]
    Guest(#[from] VmmError),
    /// A workload parameter is invalid.
    #[error("{0}")]
    Parameter(String),
    /// Workload options for a payload of another project.
    #[error("Options {0:?} are parameters of this project's payload, which this one is not (use --cmdline)")]
    ForeignOptions(String),
    /// The host has no file descriptor left for the doorbell.
    #[error("Cannot create the doorbell's eventfd")]
    Doorbell(#[source] io::Error),
    /// The policy is invalid.
    #[error("Cannot use the policy: {0}")]
    Policy(#[from] ParameterError),
    /// The host refuses the requested mechanism.
    #[error("Cannot schedule vCPUs by mechanism {kind}: {why} (try --mechanism {other})")]
    Mechanism {
        /// The requested mechanism.
        kind: MechanismKind,
        /// Why the host refuses it.
        why: String,
        /// The mechanism that this host allows.
        other: MechanismKind,
    },
    /// The host has no thread, timer or event file left for the scheduler.
    #[error("Cannot start the scheduler's threads and timers")]
    Scheduler(#[source] io::Error),
    /// The host does not report the CPU time of a vCPU thread.
    #[error(
        "Cannot read the CPU time of vCPU thread {tid}, which the policy needs (is /proc that of this PID namespace?)"
    )]
    CpuTime {
        /// The thread.
        tid: libc::pid_t,
        /// Why it cannot be read.
        source: io::Error,
    },
    /// The host has no thread left for the CPU hog.
    #[error("Cannot start the threads of the CPU hog")]
    CpuHog(#[source] io::Error),
}

impl RunError {
    /// Whether the user's request is invalid, in contrast to a refusal of the host.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Guest(error) => error.is_usage(),
            Self::Parameter(_) | Self::ForeignOptions(_) => true,
            _ => false,
        }
    }

    /// Whether the host refuses the requested publisher.
    pub fn is_of_the_publisher(&self) -> bool {
        matches!(self, Self::Guest(error) if error.is_of_the_publisher())
    }
}
