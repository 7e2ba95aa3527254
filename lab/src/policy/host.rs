//! Host: as it is. Nothing is decided; at the most its scheduler is asked for something.

use super::parameters::{ParameterError, Parameters};
use super::{Decision, Event, Ns, Policy, Scene};

/// See the module.
#[derive(Clone, Debug)]
pub struct Host {
    nice: i8,
    slice: Ns,
    is_pinned: bool,
}

impl Host {
    /// `nice`, as nice(2); `slice`, the slice that threads ask for; `affinity=home`, each vCPU on its own CPU.
    ///
    /// # Errors
    /// [`ParameterError`].
    pub fn from_parameters(parameters: &mut Parameters<'_>) -> Result<Self, ParameterError> {
        Ok(Self {
            nice: parameters.number("nice", 0, -20..=19)?,
            slice: parameters.time("slice", 0)?,
            is_pinned: parameters.word("affinity", &["any", "home"])? == "home",
        })
    }

    /// Balance: siblings live on distinct CPUs, and the host may not put two of them together while another CPU is free of
    /// them.
    pub fn balance() -> Self {
        Self { nice: 0, slice: 0, is_pinned: true }
    }
}

impl Policy for Host {
    fn decide(&mut self, event: Event, scene: &Scene, out: &mut Vec<Decision>) {
        if event != Event::Begin {
            return;
        }
        for (vcpu, view) in scene.vcpus.iter().enumerate() {
            if self.is_pinned {
                out.push(Decision::Place { vcpu, cpu: view.home });
            }
            if self.nice != 0 || self.slice != 0 {
                out.push(Decision::Tune { vcpu, nice: self.nice, slice: self.slice });
            }
        }
    }
}
