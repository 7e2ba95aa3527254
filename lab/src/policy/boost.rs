//! Boost on hint: round robin that boosts a vCPU whose guest hints that it is in a critical
//! section.
//!
//! A vCPU that hints at the end of its slice continues for `section`. One that hints while it is
//! off its CPU runs first, for as long. The boosts of a vCPU are limited to `budget` in each
//! second, so a guest that always hints gains no CPU time.
//!
//! Source: "Dynamic vcpu priority management in kvm" (Pillai, lkml December 2023), with limits of 3
//! ms and 500 ms.

use super::parameters::{ParameterError, Parameters};
use super::round_robin::RoundRobin;
use super::{Cpu, Decision, Event, Needs, Ns, Policy, SchedState, Vcpu};

const SECOND: Ns = 1_000_000_000;

/// Policy `boost`.
#[derive(Clone, Debug)]
pub struct BoostOnHint {
    base: RoundRobin,
    section: Ns,
    budget: Ns,
    vcpus: Vec<Budget>,
    /// Planned end of the unextended slice on each CPU (ns).
    planned_ends: Vec<Ns>,
}

/// Boosts of a vCPU in the current second.
#[derive(Clone, Copy, Debug)]
struct Budget {
    /// Start of the second (ns).
    since: Ns,
    /// Boosted time (ns).
    used: Ns,
    /// The current slice was extended already.
    is_extended: bool,
}

impl BoostOnHint {
    /// Parameters: those of `rr`, and `section` and `budget`.
    ///
    /// # Errors
    /// [`ParameterError`] for a value that cannot be parsed.
    pub fn from_parameters(parameters: &mut Parameters<'_>) -> Result<Self, ParameterError> {
        Ok(Self {
            base: RoundRobin::from_parameters(parameters)?,
            section: parameters.time("section", 3_000_000)?,
            budget: parameters.time("budget", 500_000_000)?,
            vcpus: Vec::new(),
            planned_ends: Vec::new(),
        })
    }

    /// Charges one boost to `vcpu`. Returns false if it does not hint or its budget is exhausted.
    fn charge(&mut self, vcpu: Vcpu, state: &SchedState) -> bool {
        let Some(budget) = self.vcpus.get_mut(vcpu).filter(|_| state.hints(vcpu).hint != 0) else {
            return false;
        };
        if state.now.saturating_sub(budget.since) >= SECOND {
            (budget.since, budget.used) = (state.now, 0);
        }
        let is_granted = budget.used + self.section <= self.budget;
        budget.used += if is_granted { self.section } else { 0 };
        is_granted
    }

    fn tick(&mut self, cpu: Cpu, due: Ns, state: &SchedState, out: &mut Vec<Decision>) {
        if let Some(vcpu) = state.on(cpu)
            && !std::mem::replace(&mut self.vcpus[vcpu].is_extended, true)
            && self.charge(vcpu, state)
        {
            return out.push(Decision::Run { cpu, vcpu, until: state.now + self.section });
        }
        let due = self.planned_ends.get(cpu).copied().unwrap_or(due);
        self.base.dispatch(cpu, due, state, out);
        if let Some(Decision::Run { vcpu, until, .. }) = out.last() {
            self.vcpus[*vcpu].is_extended = false;
            self.planned_ends[cpu] = *until;
        }
    }
}

impl Policy for BoostOnHint {
    fn needs(&self) -> Needs {
        self.base.needs().union(Needs { guest_hints: true, ..Needs::default() })
    }

    fn decide(&mut self, event: Event, state: &SchedState, out: &mut Vec<Decision>) {
        match event {
            Event::Begin => {
                let budget = Budget { since: state.now, used: 0, is_extended: false };
                self.vcpus = vec![budget; state.vcpus.len()];
                self.base.decide(event, state, out);
                self.planned_ends = vec![state.now; state.cpus.len()];
            }
            Event::Tick { cpu, due } => self.tick(cpu, due, state, out),
            Event::Hint { vcpu } if state.may_run(vcpu) && state.cpu_of(vcpu).is_none() => {
                if self.charge(vcpu, state) {
                    let (cpu, until) = (state.home_of(vcpu), state.now + self.section);
                    out.push(Decision::Boost { cpu, vcpu, until });
                }
            }
            _ => self.base.decide(event, state, out),
        }
    }
}
