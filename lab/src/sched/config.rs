//! Configuration of the scheduler, and what it asks of the payload.

use std::time::Duration;

use super::mechanism::MechanismChoice;
use crate::policy::Needs;
use crate::policy::catalogue::PolicyChoice;
use crate::policy::parameters::ParameterError;

/// How guests are scheduled.
#[derive(Clone, Debug)]
pub struct SchedConfig {
    /// The policy.
    pub policy: PolicyChoice,
    /// The mechanism.
    pub mechanism: MechanismChoice,
    /// Seed of the policy's random numbers.
    pub seed: u64,
    /// Time after which a vCPU that the policy does not run ends the session.
    pub starvation: Duration,
    /// Whether to record the guests' long waits and critical sections, for a trace.
    pub traces: bool,
}

impl SchedConfig {
    /// Returns the inputs that the policy needs.
    ///
    /// # Errors
    /// [`ParameterError`] for an invalid policy.
    pub fn needs(&self) -> Result<Needs, ParameterError> {
        self.policy.make(self.seed).map(|policy| policy.needs())
    }
}

/// The part of a slice (ns) that must be left for a lock to be taken, if the guest reads the ends
/// of its slices.
const SLICE_MARGIN_NS: u32 = 100_000;

/// Returns the workload parameters that make our payload publish what a policy needs.
pub fn workload_params(needs: Needs, traces: bool) -> String {
    let params = [
        (needs.guest_hints, "hints=on".to_owned()),
        (needs.doorbell, "doorbell=on".to_owned()),
        (traces, "trace=on".to_owned()),
        (needs.slice_left, format!("slice_margin_ns={SLICE_MARGIN_NS}")),
    ];
    let params: Vec<_> =
        params.into_iter().filter(|(is_needed, _)| *is_needed).map(|(_, param)| param).collect();
    params.join(" ")
}
