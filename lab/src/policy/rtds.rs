//! RTDS: each vCPU has a budget in each period, and the one whose period ends first runs first.
//!
//! Where no `budget` is given it is an equal share of the period. With `extra=on` a CPU whose vCPUs have all used up their budgets
//! is given to them in turn; otherwise it stays idle. Gaps are then known beforehand: none is longer than twice the period less
//! the budget.
//!
//! Source: Xen's RTDS (`xen/common/sched/rt.c`), by CPU as its partitioned form.

use super::parameters::{ParameterError, Parameters};
use super::{Cpu, Decision, Event, Lines, Ns, Policy, Scene, Vcpu};

/// See the module.
#[derive(Clone, Debug)]
pub struct Rtds {
    period: Ns,
    /// What each has; 0 for an equal share.
    budget: Ns,
    has_extra: bool,
    lines: Lines,
    /// What is left of each vCPU's budget, and when its period ends.
    servers: Vec<(Ns, Ns)>,
    /// Since when who has run on each CPU, on its budget or not.
    since: Vec<(Ns, bool)>,
}

impl Rtds {
    /// `period`, `budget` and `extra`.
    ///
    /// # Errors
    /// [`ParameterError`].
    pub fn from_parameters(parameters: &mut Parameters<'_>) -> Result<Self, ParameterError> {
        let period = parameters.turn("period", 10_000_000)?;
        Ok(Self {
            period,
            budget: parameters.time("budget", 0)?.min(period),
            has_extra: parameters.switch("extra")?,
            lines: Lines::default(),
            servers: Vec::new(),
            since: Vec::new(),
        })
    }

    fn give(&mut self, cpu: Cpu, scene: &Scene, out: &mut Vec<Decision>) {
        let now = scene.now;
        let Some(since) = self.since.get_mut(cpu) else { return };
        let (began, was_on_budget) = std::mem::replace(since, (now, false));
        if let Some((left, _)) =
            scene.on(cpu).filter(|_| was_on_budget).and_then(|vcpu| self.servers.get_mut(vcpu))
        {
            *left = left.saturating_sub(now.saturating_sub(began));
        }
        let here: Vec<Vcpu> = self.lines.of(cpu).filter(|vcpu| scene.may_run(*vcpu)).collect();
        let mut replenished = now + self.period;
        for vcpu in &here {
            let Some((left, end)) = self.servers.get_mut(*vcpu) else { continue };
            if *end <= now {
                (*left, *end) = (self.budget, scene.after(*end, self.period));
            }
            replenished = replenished.min(*end);
        }
        let budgeted =
            here.iter().copied().filter(|vcpu| self.servers.get(*vcpu).is_some_and(|(left, _)| *left > 0));
        let first = budgeted.min_by_key(|vcpu| self.servers.get(*vcpu).map(|(_, end)| *end));
        if let Some(vcpu) = first {
            self.since[cpu] = (now, true);
            let left = self.servers.get(vcpu).map_or(0, |(left, _)| *left);
            out.push(Decision::Run { cpu, vcpu, until: (now + left).min(replenished) });
        } else if let Some(vcpu) = self.lines.next(cpu, |vcpu| self.has_extra && scene.may_run(vcpu)) {
            out.push(Decision::Run { cpu, vcpu, until: (now + self.budget).min(replenished) });
        } else {
            out.push(Decision::Idle { cpu, until: replenished });
        }
    }
}

impl Policy for Rtds {
    fn decide(&mut self, event: Event, scene: &Scene, out: &mut Vec<Decision>) {
        match event {
            Event::Begin => {
                self.lines = Lines::by_home(scene);
                if self.budget == 0 {
                    let most = (0..scene.cpus.len()).map(|cpu| self.lines.of(cpu).count()).max().unwrap_or(1);
                    self.budget = self.period / most.max(1) as Ns;
                }
                self.servers = vec![(self.budget, scene.now + self.period); scene.vcpus.len()];
                self.since = vec![(scene.now, false); scene.cpus.len()];
                (0..scene.cpus.len()).for_each(|cpu| self.give(cpu, scene, out));
            }
            Event::Tick { cpu, .. } => self.give(cpu, scene, out),
            _ => {}
        }
    }
}
