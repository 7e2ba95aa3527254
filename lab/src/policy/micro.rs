//! Micro-slices: round robin with very short slices on some CPUs, which bounds the time until an
//! awaited vCPU runs.
//!
//! The last `cpus` CPUs use slices of `short`. With `classify=on`, a vCPU that holds or waits for a
//! lock at the end of its slice migrates to the last CPU. It returns to its home at the end of a
//! slice in which it does neither.
//!
//! Source: Ahn et al., "Micro-Sliced Virtual Processors", MICRO 2014, and "Accelerating Critical OS
//! Services in Virtualized Systems with Flexible Micro-sliced Cores", `EuroSys` 2018.

use super::parameters::{ParameterError, Parameters};
use super::round_robin::RoundRobin;
use super::{Cpu, Decision, Event, Needs, Ns, Policy, RunQueues, SchedState};

/// Policy `micro`.
#[derive(Clone, Debug)]
pub struct Micro {
    base: RoundRobin,
    short: Ns,
    cpus: usize,
    classifies: bool,
}

impl Micro {
    /// Parameters: `slice`, `short`, `cpus` and `classify`.
    ///
    /// # Errors
    /// [`ParameterError`] for a value that cannot be parsed.
    pub fn from_parameters(parameters: &mut Parameters<'_>) -> Result<Self, ParameterError> {
        Ok(Self {
            base: RoundRobin::new(parameters.slice("slice", 3_000_000)?),
            short: parameters.slice("short", 500_000)?,
            cpus: parameters.number("cpus", 1, 1..=4096)?,
            classifies: parameters.on_off("classify")?,
        })
    }

    fn is_micro_sliced(&self, cpu: Cpu, state: &SchedState) -> bool {
        cpu + self.cpus >= state.cpus.len()
    }

    fn dispatch(&mut self, cpu: Cpu, due: Ns, state: &SchedState, out: &mut Vec<Decision>) {
        if self.classifies
            && let Some(vcpu) = state.on(cpu)
        {
            let hints = state.hints(vcpu);
            let is_critical = hints.locks_held > 0 || hints.waiting_since_tsc.is_some();
            let last = state.cpus.len().saturating_sub(1);
            self.base.queues().enqueue(if is_critical { last } else { state.home_of(vcpu) }, vcpu);
        }
        let slice = if self.is_micro_sliced(cpu, state) { self.short } else { self.base.slice() };
        let until = state.forward(due, slice);
        // The queue is empty if all its vCPUs have migrated.
        let next = self.base.queues().pick_next(cpu, |vcpu| state.may_run_on(cpu, vcpu));
        out.push(match next {
            Some(vcpu) => Decision::Run { cpu, vcpu, until },
            None => Decision::Idle { cpu, until: state.now + self.short },
        });
    }
}

impl Policy for Micro {
    fn needs(&self) -> Needs {
        Needs { guest_hints: self.classifies, ..Needs::default() }
    }

    fn decide(&mut self, event: Event, state: &SchedState, out: &mut Vec<Decision>) {
        match event {
            Event::Begin => {
                *self.base.queues() = RunQueues::by_home(state);
                (0..state.cpus.len()).for_each(|cpu| self.dispatch(cpu, state.now, state, out));
            }
            Event::Tick { cpu, due } => self.dispatch(cpu, due, state, out),
            _ => {}
        }
    }
}
