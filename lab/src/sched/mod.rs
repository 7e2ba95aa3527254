//! Scheduling: applies the decisions of a policy to vCPU threads.
//!
//! A [`policy`](crate::policy) is pure; threads and clocks are here. The [`dispatcher`] delivers
//! events to the policy and validates its decisions by [`crate::policy::schedule`]. A [`mechanism`]
//! then makes the vCPU threads follow the schedule:
//!
//! | mechanism | how | preemption | needs |
//! |---|---|---|---|
//! | `class` | pinned `SCHED_FIFO` threads; the assigned one has the higher priority | by the kernel, at any instruction | `CAP_SYS_NICE` or `RLIMIT_RTPRIO` |
//! | `deschedule` | a signal makes a thread leave the guest; it waits until it is scheduled | at the exit to userspace | nothing |
//!
//! With `class` a driver thread times the slices. With `deschedule` each vCPU thread times its own,
//! and the driver serves only CPUs without a running vCPU. Nice values, slices and weights do not
//! suffice: the fair class applies them at its next tick, or not at all.
//!
//! The [`log`] keeps each decision with its timestamps, and perf records the context switches.
//! [`fidelity`] compares the two.

pub mod choice;
mod class;
mod config;
pub mod cpu_hog;
mod deschedule;
pub mod dispatcher;
mod driver;
pub mod fidelity;
mod hints;
pub mod log;
pub mod mechanism;
mod outcome;
pub mod policy_call;
mod recorder;
mod scheduling;
mod stop_reason;
mod vcpu_threads;
mod waits;

pub use config::{SchedConfig, workload_params};
pub use hints::ScheduledGuest;
pub use outcome::SchedOutcome;
pub use recorder::{LockEpisode, LockSample};
pub use scheduling::{PriorityBoost, Scheduling};
pub use stop_reason::StopReason;
