//! Deferral: round robin that defers the preemption of a lock holder.
//!
//! A vCPU that holds a lock at the end of its slice continues for `grace`, at most `max` times in a
//! row. With `debt=on` its next slice is shorter by the time it got. Deferral avoids lock holder
//! preemption. It does not avoid the preemption of the next waiter, so FIFO locks gain nothing.
//!
//! Source: Uhlig et al., "Towards Scalable Multiprocessor Virtual Machines", VM 2004; eCS (Kashyap,
//! Min, Kim, ATC 2018).

use super::parameters::{ParameterError, Parameters};
use super::round_robin::RoundRobin;
use super::{Cpu, Decision, Event, Needs, Ns, Policy, SchedState, Vcpu};

/// Time from a decision until the chosen vCPU runs (ns).
const SWITCH_COST: Ns = 50_000;

/// Policy `deferral`.
#[derive(Clone, Debug)]
pub struct Deferral {
    base: RoundRobin,
    grace: Ns,
    max: u32,
    repays: bool,
    /// Deferrals of each vCPU since the planned end of its slice.
    deferrals: Vec<u32>,
    /// Time that each vCPU owes (ns).
    debts: Vec<Ns>,
    /// Planned end of the undeferred slice on each CPU (ns).
    planned_ends: Vec<Ns>,
}

impl Deferral {
    /// Parameters: those of `rr`, and `grace`, `max` and `debt`.
    ///
    /// # Errors
    /// [`ParameterError`] for a value that cannot be parsed.
    pub fn from_parameters(parameters: &mut Parameters<'_>) -> Result<Self, ParameterError> {
        Ok(Self {
            base: RoundRobin::from_parameters(parameters)?,
            grace: parameters.time("grace", 50_000)?,
            max: parameters.number("max", 4, 1..=1_000)?,
            repays: parameters.on_off("debt")?,
            deferrals: Vec::new(),
            debts: Vec::new(),
            planned_ends: Vec::new(),
        })
    }

    /// Counts a deferral of `vcpu`. Returns false, and resets the count, if it holds no lock or was
    /// deferred `max` times.
    fn defer(&mut self, vcpu: Vcpu, state: &SchedState) -> bool {
        let Some(deferrals) = self.deferrals.get_mut(vcpu) else { return false };
        if state.hints(vcpu).locks_held == 0 || *deferrals == self.max {
            *deferrals = 0;
            return false;
        }
        *deferrals += 1;
        self.debts[vcpu] += if self.repays { self.grace } else { 0 };
        true
    }

    /// Boosts a vCPU that acquired a lock between the decision and its preemption. On hosts with
    /// several CPUs that gap is a few microseconds.
    fn boost_holder(&mut self, vcpu: Vcpu, state: &SchedState, out: &mut Vec<Decision>) {
        let (cpu, until) = (state.home_of(vcpu), state.now + SWITCH_COST + self.grace);
        let is_early = state.slice_end(cpu) > until;
        if is_early && state.may_run(vcpu) && state.cpu_of(vcpu).is_none() && self.defer(vcpu, state) {
            out.push(Decision::Boost { cpu, vcpu, until });
        }
    }

    fn tick(&mut self, cpu: Cpu, due: Ns, state: &SchedState, out: &mut Vec<Decision>) {
        if let Some(vcpu) = state.on(cpu)
            && self.defer(vcpu, state)
        {
            return out.push(Decision::Run { cpu, vcpu, until: state.now + self.grace });
        }
        // Slices keep their grid: a deferral shortens the next slice on this CPU.
        let due = self.planned_ends.get(cpu).copied().unwrap_or(due);
        self.base.dispatch(cpu, due, state, out);
        let Some(Decision::Run { vcpu, until, .. }) = out.last_mut() else { return };
        self.planned_ends[cpu] = *until;
        let debt = std::mem::take(&mut self.debts[*vcpu]);
        let shorter = until.saturating_sub(debt);
        // A debtor keeps at least a quarter of its slice.
        if shorter > state.now + self.base.slice() / 4 {
            *until = shorter;
            self.planned_ends[cpu] = shorter;
        }
    }
}

impl Policy for Deferral {
    fn needs(&self) -> Needs {
        self.base.needs().union(Needs { guest_hints: true, ..Needs::default() })
    }

    fn decide(&mut self, event: Event, state: &SchedState, out: &mut Vec<Decision>) {
        match event {
            Event::Begin => {
                self.deferrals = vec![0; state.vcpus.len()];
                self.debts = vec![0; state.vcpus.len()];
                self.base.decide(event, state, out);
                let until = |decision: &Decision| match decision {
                    Decision::Run { until, .. } | Decision::Idle { until, .. } => *until,
                    _ => state.now,
                };
                self.planned_ends = out.iter().map(until).collect();
            }
            Event::Tick { cpu, due } => self.tick(cpu, due, state, out),
            Event::HolderPreempted { vcpu } => self.boost_holder(vcpu, state, out),
            _ => self.base.decide(event, state, out),
        }
    }
}
