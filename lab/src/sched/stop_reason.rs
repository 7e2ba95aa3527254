//! Why scheduling stopped before the guests ended.

use std::fmt;
use std::time::Duration;

/// Why scheduling stopped before the guests ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The policy panicked, with this message.
    Panicked(String),
    /// The policy did not run a vCPU.
    Starved {
        /// Index of the guest.
        guest: usize,
        /// Index of the vCPU in its guest.
        vcpu: usize,
        /// Time for which the vCPU could not run.
        lasted: Duration,
    },
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panicked(message) => write!(f, "the policy panicked: {message}"),
            Self::Starved { guest, vcpu, lasted } => {
                let seconds = lasted.as_secs_f64();
                write!(f, "the policy has not run vCPU {vcpu} of guest {guest} for {seconds:.1} s")
            }
        }
    }
}
