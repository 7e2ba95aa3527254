//! Deferral: whoever holds a lock when its turn ends is let go on for a moment.
//!
//! `grace` is that moment; the same vCPU gets so many in a row (`most`), and with `debt=on` its next turn is shorter by what it
//! was given. It saves holders. It does not save whoever is next in line, so locks that pass themselves on gain nothing.
//!
//! Source: Uhlig et al., VM 2004; eCS (Kashyap, Min, Kim, ATC 2018).

use super::parameters::{ParameterError, Parameters};
use super::round_robin::RoundRobin;
use super::{Cpu, Decision, Event, Ns, Policy, Scene, Vcpu, Wants};

/// What it takes until a vCPU that was chosen runs.
const SWITCH: Ns = 50_000;

/// See the module.
#[derive(Clone, Debug)]
pub struct Deferral {
    base: RoundRobin,
    grace: Ns,
    most: u32,
    repays: bool,
    /// What each vCPU was given since its turn was to end: times.
    given: Vec<u32>,
    /// What each vCPU owes.
    debts: Vec<Ns>,
    /// When the turn on each CPU was to end.
    grid: Vec<Ns>,
}

impl Deferral {
    /// Round robin's parameters, `grace`, `most` and `debt`.
    ///
    /// # Errors
    /// [`ParameterError`].
    pub fn from_parameters(parameters: &mut Parameters<'_>, seed: u64) -> Result<Self, ParameterError> {
        Ok(Self {
            base: RoundRobin::from_parameters(parameters, seed)?,
            grace: parameters.time("grace", 50_000)?,
            most: parameters.number("most", 4, 1..=1_000)?,
            repays: parameters.switch("debt")?,
            given: Vec::new(),
            debts: Vec::new(),
            grid: Vec::new(),
        })
    }

    /// Whether `vcpu` is to go on: it holds a lock, and has not been given all that it may be.
    fn is_spared(&mut self, vcpu: Vcpu, scene: &Scene) -> bool {
        let Some(given) = self.given.get_mut(vcpu) else { return false };
        if scene.told(vcpu).holds == 0 || *given == self.most {
            *given = 0;
            return false;
        }
        *given += 1;
        true
    }

    /// A host with more than one CPU acts a few microseconds after it has looked. Who has taken a lock in between is brought back
    /// for a moment, and for as long as it takes to do so; then whoever's turn it is goes on.
    fn bring_back(&mut self, vcpu: Vcpu, scene: &Scene, out: &mut Vec<Decision>) {
        let Some(view) = scene.vcpus.get(vcpu) else { return };
        let (cpu, until) = (view.home, scene.now + SWITCH + self.grace);
        let is_early = scene.cpus.get(cpu).is_some_and(|cpu| cpu.until > until);
        if is_early && scene.may_run(vcpu) && scene.cpu_of(vcpu).is_none() && self.is_spared(vcpu, scene) {
            self.debts[vcpu] += if self.repays { self.grace } else { 0 };
            out.push(Decision::Boost { cpu, vcpu, until });
        }
    }

    fn tick(&mut self, cpu: Cpu, due: Ns, scene: &Scene, out: &mut Vec<Decision>) {
        if let Some(vcpu) = scene.on(cpu)
            && self.is_spared(vcpu, scene)
        {
            self.debts[vcpu] += if self.repays { self.grace } else { 0 };
            return out.push(Decision::Run { cpu, vcpu, until: scene.now + self.grace });
        }
        // The others' turns keep to their grid: what one is given, the next one lacks.
        let due = self.grid.get(cpu).copied().unwrap_or(due);
        self.base.give(cpu, due, scene, out);
        let Some(Decision::Run { vcpu, until, .. }) = out.last_mut() else { return };
        self.grid[cpu] = *until;
        let debt = std::mem::take(&mut self.debts[*vcpu]);
        let shorter = until.saturating_sub(debt);
        // A quarter of a turn is left to everybody.
        if shorter > scene.now + self.base.quantum() / 4 {
            *until = shorter;
            self.grid[cpu] = shorter;
        }
    }
}

impl Policy for Deferral {
    fn wants(&self) -> Wants {
        self.base.wants().and(Wants { told: true, ..Wants::default() })
    }

    fn decide(&mut self, event: Event, scene: &Scene, out: &mut Vec<Decision>) {
        match event {
            Event::Begin => {
                self.given = vec![0; scene.vcpus.len()];
                self.debts = vec![0; scene.vcpus.len()];
                self.base.decide(event, scene, out);
                let until = |decision: &Decision| match decision {
                    Decision::Run { until, .. } | Decision::Idle { until, .. } => *until,
                    _ => scene.now,
                };
                self.grid = out.iter().map(until).collect();
            }
            Event::Tick { cpu, due } => self.tick(cpu, due, scene, out),
            Event::Caught { vcpu } => self.bring_back(vcpu, scene, out),
            _ => self.base.decide(event, scene, out),
        }
    }
}
