//! Results of applying decisions: changes of the schedule, or a refusal.

use crate::policy::{Assignment, Cpu, Ns, Vcpu};

/// Why decisions were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// A slice or timer ends in the past.
    #[error("a decision ends in the past")]
    Late,
    /// Two decisions for one CPU, one vCPU on two CPUs, or a throttled vCPU that is to run.
    #[error("decisions contradict each other")]
    Contradictory,
    /// A CPU or vCPU that does not exist, or a vCPU that has exited.
    #[error("a decision names a CPU or vCPU that does not exist")]
    Impossible,
}

/// A change of the schedule, which vCPU threads must follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The assignment of a CPU.
    Switch {
        /// The CPU.
        cpu: Cpu,
        /// Its previous assignment.
        from: Assignment,
        /// Its new assignment.
        to: Assignment,
    },
    /// A vCPU is throttled.
    Throttle(Vcpu),
    /// A vCPU is no longer throttled.
    Unthrottle(Vcpu),
    /// A vCPU has a new home.
    Migrate(Vcpu, Cpu),
    /// A vCPU has a new nice value and a new slice (ns).
    Tune(Vcpu, i8, Ns),
}
