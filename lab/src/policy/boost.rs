//! Boost on hint: a guest that hints that a vCPU is at something urgent has it go on, or come first.
//!
//! One that hints when its turn ends goes on for `section` at the most; one that does not run and hints comes first for as
//! long. In each second a vCPU is favoured for `budget` at the most: a guest that hints always gains nothing by it.
//!
//! Source: "Dynamic vcpu priority management in kvm" (Pillai, lkml December 2023), whose caps are 3 ms and 500 ms.

use super::parameters::{ParameterError, Parameters};
use super::round_robin::RoundRobin;
use super::{Cpu, Decision, Event, Ns, Policy, Scene, Vcpu, Wants};

const SECOND: Ns = 1_000_000_000;

/// See the module.
#[derive(Clone, Debug)]
pub struct BoostOnHint {
    base: RoundRobin,
    section: Ns,
    budget: Ns,
    /// Since when each vCPU's second has run, and what it was favoured in it.
    used: Vec<(Ns, Ns)>,
    /// Whether each went on already, past the end of its turn.
    went_on: Vec<bool>,
    /// When the turn on each CPU was to end.
    grid: Vec<Ns>,
}

impl BoostOnHint {
    /// Round robin's parameters, `section` and `budget`.
    ///
    /// # Errors
    /// [`ParameterError`].
    pub fn from_parameters(parameters: &mut Parameters<'_>, seed: u64) -> Result<Self, ParameterError> {
        Ok(Self {
            base: RoundRobin::from_parameters(parameters, seed)?,
            section: parameters.time("section", 3_000_000)?,
            budget: parameters.time("budget", 500_000_000)?,
            used: Vec::new(),
            went_on: Vec::new(),
            grid: Vec::new(),
        })
    }

    /// Whether `vcpu` hints, and may still be favoured; if so, that it now is.
    fn takes(&mut self, vcpu: Vcpu, scene: &Scene) -> bool {
        let Some((since, used)) = self.used.get_mut(vcpu).filter(|_| scene.told(vcpu).hint != 0) else {
            return false;
        };
        if scene.now.saturating_sub(*since) >= SECOND {
            (*since, *used) = (scene.now, 0);
        }
        let may = *used + self.section <= self.budget;
        *used += if may { self.section } else { 0 };
        may
    }

    fn tick(&mut self, cpu: Cpu, due: Ns, scene: &Scene, out: &mut Vec<Decision>) {
        if let Some(vcpu) = scene.on(cpu)
            && !std::mem::replace(&mut self.went_on[vcpu], true)
            && self.takes(vcpu, scene)
        {
            return out.push(Decision::Run { cpu, vcpu, until: scene.now + self.section });
        }
        let due = self.grid.get(cpu).copied().unwrap_or(due);
        self.base.give(cpu, due, scene, out);
        if let Some(Decision::Run { vcpu, until, .. }) = out.last() {
            self.went_on[*vcpu] = false;
            self.grid[cpu] = *until;
        }
    }
}

impl Policy for BoostOnHint {
    fn wants(&self) -> Wants {
        self.base.wants().and(Wants { told: true, ..Wants::default() })
    }

    fn decide(&mut self, event: Event, scene: &Scene, out: &mut Vec<Decision>) {
        match event {
            Event::Begin => {
                self.used = vec![(scene.now, 0); scene.vcpus.len()];
                self.went_on = vec![false; scene.vcpus.len()];
                self.base.decide(event, scene, out);
                self.grid = vec![scene.now; scene.cpus.len()];
            }
            Event::Tick { cpu, due } => self.tick(cpu, due, scene, out),
            Event::Hint { vcpu } if scene.may_run(vcpu) && scene.cpu_of(vcpu).is_none() => {
                if self.takes(vcpu, scene) {
                    let cpu = scene.vcpus.get(vcpu).map_or(0, |view| view.home);
                    out.push(Decision::Boost { cpu, vcpu, until: scene.now + self.section });
                }
            }
            _ => self.base.decide(event, scene, out),
        }
    }
}
