//! Slice left: round robin, and the guest can read when the slice of each vCPU ends.
//!
//! The guest decides what to do with it. Our payload does not acquire a lock with less than
//! `slice_margin_ns` left, so lock holders are rarely preempted.
//!
//! Source: I-Spinlock (Teabe et al., `EuroSys` 2017).

use super::parameters::{ParameterError, Parameters};
use super::round_robin::RoundRobin;
use super::{Decision, Event, Needs, Policy, SchedState};

/// Policy `slice-left`: [`RoundRobin`] with [`Needs::slice_left`].
#[derive(Clone, Debug)]
pub struct SliceLeft(RoundRobin);

impl SliceLeft {
    /// Parameters: those of `rr`.
    ///
    /// # Errors
    /// [`ParameterError`] for a value that cannot be parsed.
    pub fn from_parameters(parameters: &mut Parameters<'_>) -> Result<Self, ParameterError> {
        Ok(Self(RoundRobin::from_parameters(parameters)?))
    }
}

impl Policy for SliceLeft {
    fn needs(&self) -> Needs {
        self.0.needs().union(Needs { slice_left: true, ..Needs::default() })
    }

    fn decide(&mut self, event: Event, state: &SchedState, out: &mut Vec<Decision>) {
        self.0.decide(event, state, out);
    }
}
