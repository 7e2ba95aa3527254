//! The outcome of scheduling: the plan and the record of what happened.

use super::fidelity::{OnCpu, on_cpu};
use super::log::Log;
use super::mechanism::MechanismKind;
use super::recorder::{LockEpisode, LockSample};
use super::stop_reason::StopReason;
use crate::policy::{Needs, Ns};
use host::perf::Switch;

/// What a policy decided and what the vCPU threads did. Timestamps are of `CLOCK_MONOTONIC` (ns).
#[derive(Debug)]
pub struct SchedOutcome {
    /// The policy with its parameters, as the user wrote it.
    pub policy: String,
    /// Seed of the policy's random numbers.
    pub seed: u64,
    /// The inputs that the policy needed.
    pub needs: Needs,
    /// The mechanism.
    pub mechanism: MechanismKind,
    /// Why this mechanism was chosen.
    pub mechanism_why: String,
    /// The scheduling class of the driver thread.
    pub driver: &'static str,
    /// When scheduling began.
    pub began_ns: Ns,
    /// When scheduling ended.
    pub ended_ns: Ns,
    /// The host's numbers of the CPUs.
    pub cpus: Vec<usize>,
    /// The number of vCPUs of each guest.
    pub vcpus: Vec<usize>,
    /// Why scheduling stopped before the guests ended; `None` if it did not.
    pub stop_reason: Option<StopReason>,
    /// The decisions.
    pub log: Log,
    /// The context switches of each vCPU thread; `None` if the host refuses perf.
    pub switches: Option<Vec<Vec<Switch>>>,
    /// When each vCPU thread exited; `None` while it runs.
    pub left: Vec<Option<Ns>>,
    /// Number of context switches that full buffers dropped.
    pub lost_switches: u64,
    /// Long waits and critical sections in the guests.
    pub episodes: Vec<LockEpisode>,
    /// Number of episodes and samples that full buffers dropped, and of bogus episodes.
    pub lost_episodes: u64,
    /// Lock acquisitions of each guest over time.
    pub samples: Vec<LockSample>,
}

impl SchedOutcome {
    /// Returns the intervals for which each vCPU thread had a CPU; `None` if the host refuses perf.
    pub fn on_cpu(&self) -> Option<Vec<Vec<OnCpu>>> {
        // perf does not record the exit of a thread.
        let ends = self.left.iter().map(|left| left.unwrap_or(self.ended_ns).min(self.ended_ns));
        let switches = self.switches.as_ref()?;
        Some(switches.iter().zip(ends).map(|(switches, end)| on_cpu(switches, self.began_ns..end)).collect())
    }
}
