//! Slice left: round robin, and each vCPU is told when its turn ends.
//!
//! What it makes of that is the guest's affair: our payload takes no lock with less than `slice_margin_ns` left. Holders are
//! then hardly ever preempted, and whoever is next in line less often.
//!
//! Source: I-Spinlock (Teabe et al., `EuroSys` 2017).

use super::parameters::{ParameterError, Parameters};
use super::round_robin::RoundRobin;
use super::{Decision, Event, Policy, Scene, Wants};

/// See the module.
#[derive(Clone, Debug)]
pub struct SliceLeft(RoundRobin);

impl SliceLeft {
    /// Round robin's parameters.
    ///
    /// # Errors
    /// [`ParameterError`].
    pub fn from_parameters(parameters: &mut Parameters<'_>, seed: u64) -> Result<Self, ParameterError> {
        Ok(Self(RoundRobin::from_parameters(parameters, seed)?))
    }
}

impl Policy for SliceLeft {
    fn wants(&self) -> Wants {
        self.0.wants().and(Wants { slice_left: true, ..Wants::default() })
    }

    fn decide(&mut self, event: Event, scene: &Scene, out: &mut Vec<Decision>) {
        self.0.decide(event, scene, out);
    }
}
