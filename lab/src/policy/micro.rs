//! Micro-slices: on some CPUs turns are very short, so that whoever is waited for comes soon.
//!
//! The last `cpus` CPUs have turns of `short`. With `classify=on` whoever holds a lock, or waits for one, when its turn ends
//! moves there, and goes back home when it does neither.
//!
//! Source: Ahn et al., MICRO 2014; flexible micro-sliced cores, `EuroSys` 2018.

use super::parameters::{ParameterError, Parameters};
use super::round_robin::RoundRobin;
use super::{Cpu, Decision, Event, Lines, Ns, Policy, Scene, Wants};

/// See the module.
#[derive(Clone, Debug)]
pub struct Micro {
    base: RoundRobin,
    short: Ns,
    cpus: usize,
    classifies: bool,
}

impl Micro {
    /// `quantum`, `short`, `cpus` and `classify`.
    ///
    /// # Errors
    /// [`ParameterError`].
    pub fn from_parameters(parameters: &mut Parameters<'_>) -> Result<Self, ParameterError> {
        Ok(Self {
            base: RoundRobin::new(parameters.turn("quantum", 3_000_000)?),
            short: parameters.turn("short", 500_000)?,
            cpus: parameters.number("cpus", 1, 1..=4096)?,
            classifies: parameters.switch("classify")?,
        })
    }

    fn is_short(&self, cpu: Cpu, scene: &Scene) -> bool {
        cpu + self.cpus >= scene.cpus.len()
    }

    fn give(&mut self, cpu: Cpu, due: Ns, scene: &Scene, out: &mut Vec<Decision>) {
        if self.classifies
            && let Some(vcpu) = scene.on(cpu)
        {
            let told = scene.told(vcpu);
            let is_critical = told.holds > 0 || told.waits_since.is_some();
            let home = scene.vcpus.get(vcpu).map_or(cpu, |view| view.home);
            let short = scene.cpus.len().saturating_sub(1);
            self.base.lines().join(if is_critical { short } else { home }, vcpu);
        }
        let step = if self.is_short(cpu, scene) { self.short } else { self.base.quantum() };
        let until = scene.after(due, step);
        // A line may be empty: they are all on the other side.
        let next = self.base.lines().next(cpu, |vcpu| scene.may_run_on(cpu, vcpu));
        out.push(match next {
            Some(vcpu) => Decision::Run { cpu, vcpu, until },
            None => Decision::Idle { cpu, until: scene.now + self.short },
        });
    }
}

impl Policy for Micro {
    fn wants(&self) -> Wants {
        Wants { told: self.classifies, ..Wants::default() }
    }

    fn decide(&mut self, event: Event, scene: &Scene, out: &mut Vec<Decision>) {
        match event {
            Event::Begin => {
                *self.base.lines() = Lines::by_home(scene);
                (0..scene.cpus.len()).for_each(|cpu| self.give(cpu, scene.now, scene, out));
            }
            Event::Tick { cpu, due } => self.give(cpu, due, scene, out),
            _ => {}
        }
    }
}
