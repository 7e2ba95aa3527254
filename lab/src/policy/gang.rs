//! Gang scheduling: the vCPUs of a guest run together, or none of them runs.
//!
//! A guest with more vCPUs than there are CPUs is split into gangs of one vCPU a CPU. CPUs that a
//! gang does not fill stay idle (`pad=idle`), which isolates gangs, or run vCPUs of other gangs
//! (`pad=fill`).
//!
//! Source: Ousterhout, "Scheduling Techniques for Concurrent Systems", ICDCS 1982.

use std::collections::VecDeque;

use super::parameters::{ParameterError, Parameters};
use super::{Decision, Event, Ns, Policy, SchedState, Vcpu};

/// Policy `gang`.
#[derive(Clone, Debug)]
pub struct Gang {
    slice: Ns,
    fills: bool,
    gangs: VecDeque<Vec<Vcpu>>,
    /// Planned end (ns) of the last slice. The ticks of all CPUs share it, and the first one
    /// switches all CPUs.
    last_due: Option<Ns>,
}

impl Gang {
    /// Parameters: `slice`, the slice of a gang; `pad`, `idle` or `fill`.
    ///
    /// # Errors
    /// [`ParameterError`] for a value that cannot be parsed.
    pub fn from_parameters(parameters: &mut Parameters<'_>) -> Result<Self, ParameterError> {
        Ok(Self {
            slice: parameters.slice("slice", 3_000_000)?,
            fills: parameters.one_of("pad", &["idle", "fill"])? == "fill",
            gangs: VecDeque::new(),
            last_due: None,
        })
    }

    /// The eligible vCPUs of the next gang, followed by those of the other gangs with `pad=fill`.
    /// Moves the gang to the tail.
    fn pick_next(&mut self, state: &SchedState) -> Vec<Vcpu> {
        let may_run = |vcpu: &Vcpu| state.may_run(*vcpu);
        let Some(head) = self.gangs.iter().position(|gang| gang.iter().any(may_run)) else {
            return Vec::new();
        };
        self.gangs.rotate_left(head);
        let gangs = if self.fills { self.gangs.len() } else { 1 };
        let vcpus = self.gangs.iter().take(gangs).flatten().copied().filter(may_run).collect();
        self.gangs.rotate_left(1);
        vcpus
    }

    /// Switches all CPUs to the next gang.
    fn dispatch(&mut self, due: Ns, state: &SchedState, out: &mut Vec<Decision>) {
        self.last_due = Some(due);
        let until = state.forward(due, self.slice);
        // Each vCPU runs on its home if that is free. Other CPUs take the remaining vCPUs in order.
        let mut cpus = vec![None; state.cpus.len()];
        let mut remaining = VecDeque::new();
        for vcpu in self.pick_next(state) {
            match state.vcpus.get(vcpu).and_then(|view| cpus.get_mut(view.home)) {
                Some(home @ None) => *home = Some(vcpu),
                _ => remaining.push_back(vcpu),
            }
        }
        for (cpu, vcpu) in cpus.into_iter().enumerate() {
            out.push(match vcpu.or_else(|| remaining.pop_front()) {
                Some(vcpu) => Decision::Run { cpu, vcpu, until },
                None => Decision::Idle { cpu, until },
            });
        }
    }
}

impl Policy for Gang {
    fn decide(&mut self, event: Event, state: &SchedState, out: &mut Vec<Decision>) {
        match event {
            Event::Begin => {
                let size = state.cpus.len().max(1);
                self.gangs.clear();
                for guest in 0..state.guests() {
                    let vcpus: Vec<_> = state.of_guest(guest).collect();
                    self.gangs.extend(vcpus.chunks(size).map(<[Vcpu]>::to_vec));
                }
                self.dispatch(state.now, state, out);
            }
            Event::Tick { due, .. } if self.last_due.is_none_or(|last| last < due) => {
                self.dispatch(due, state, out);
            }
            // The CPU of the vCPU that exited ticks at once, possibly not after `last_due`.
            Event::Exit { .. } => self.last_due = None,
            _ => {}
        }
    }
}
