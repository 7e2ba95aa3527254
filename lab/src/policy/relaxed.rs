//! Relaxed co-scheduling: as the host likes, but no vCPU may lead its siblings by much.
//!
//! Each `period` the progress of a guest's vCPUs is compared. One that has run longer than the slowest by more than `skew` is
//! stopped; it goes on when it leads by less than `restart`. Between nothing (a large skew) and a gang (none).
//!
//! Source: `VMware`, "Co-scheduling SMP VMs in `VMware` ESX Server", 2008.

use super::parameters::{ParameterError, Parameters};
use super::{Decision, Event, Ns, Policy, Scene, Vcpu, Wants};

/// See the module.
#[derive(Clone, Debug)]
pub struct Relaxed {
    skew: Ns,
    restart: Ns,
    period: Ns,
    /// What each vCPU had run when it began.
    began: Vec<Ns>,
}

impl Relaxed {
    /// `skew`, `restart` and `period`.
    ///
    /// # Errors
    /// [`ParameterError`].
    pub fn from_parameters(parameters: &mut Parameters<'_>) -> Result<Self, ParameterError> {
        let skew = parameters.time("skew", 3_000_000)?;
        Ok(Self {
            skew,
            restart: parameters.time("restart", skew / 2)?.min(skew),
            period: parameters.time("period", 1_000_000)?,
            began: Vec::new(),
        })
    }

    fn progress(&self, vcpu: Vcpu, scene: &Scene) -> Ns {
        let ran = scene.vcpus.get(vcpu).map_or(0, |view| view.ran);
        ran.saturating_sub(self.began.get(vcpu).copied().unwrap_or(0))
    }
}

impl Policy for Relaxed {
    fn wants(&self) -> Wants {
        Wants { accounts: true, ..Wants::default() }
    }

    fn decide(&mut self, event: Event, scene: &Scene, out: &mut Vec<Decision>) {
        match event {
            Event::Begin => {
                self.began = scene.vcpus.iter().map(|view| view.ran).collect();
                out.push(Decision::Alarm { at: scene.now + self.period });
            }
            Event::Alarm { due } => {
                for guest in 0..scene.guests() {
                    // One that has nothing to do makes no progress, and is waited for by nobody.
                    let wants = |vcpu: &Vcpu| {
                        scene.vcpus.get(*vcpu).is_some_and(|view| !view.is_asleep || view.is_parked)
                    };
                    let slowest =
                        scene.of_guest(guest).filter(wants).map(|vcpu| self.progress(vcpu, scene)).min();
                    let Some(slowest) = slowest else { continue };
                    for vcpu in scene.of_guest(guest) {
                        let lead = self.progress(vcpu, scene).saturating_sub(slowest);
                        let is_parked = scene.vcpus.get(vcpu).is_some_and(|view| view.is_parked);
                        if !is_parked && lead > self.skew {
                            out.push(Decision::Park { vcpu });
                        } else if is_parked && lead < self.restart {
                            out.push(Decision::Resume { vcpu });
                        }
                    }
                }
                out.push(Decision::Alarm { at: scene.after(due, self.period) });
            }
            _ => {}
        }
    }
}
