//! Relaxed co-scheduling: the host schedules, but no vCPU may run ahead of its siblings by much.
//!
//! Every `period` the policy compares the CPU time of the vCPUs of a guest. A vCPU that leads the
//! slowest sibling by more than `skew` is throttled until its lead is below `restart`. A large skew
//! imposes nothing; no skew is gang scheduling.
//!
//! Source: `VMware`, "Co-scheduling SMP VMs in `VMware` ESX Server", 2008.

use super::parameters::{ParameterError, Parameters};
use super::{Decision, Event, Needs, Ns, Policy, SchedState, Vcpu};

/// Policy `relaxed`.
#[derive(Clone, Debug)]
pub struct Relaxed {
    skew: Ns,
    restart: Ns,
    period: Ns,
    /// CPU time (ns) of each vCPU at [`Event::Begin`].
    baseline: Vec<Ns>,
}

impl Relaxed {
    /// Parameters: `skew`, `restart` and `period`.
    ///
    /// # Errors
    /// [`ParameterError`] for a value that cannot be parsed.
    pub fn from_parameters(parameters: &mut Parameters<'_>) -> Result<Self, ParameterError> {
        let skew = parameters.time("skew", 3_000_000)?;
        Ok(Self {
            skew,
            restart: parameters.time("restart", skew / 2)?.min(skew),
            period: parameters.time("period", 1_000_000)?,
            baseline: Vec::new(),
        })
    }

    /// CPU time of `vcpu` since [`Event::Begin`] (ns).
    fn progress(&self, vcpu: Vcpu, state: &SchedState) -> Ns {
        let ran = state.vcpus.get(vcpu).map_or(0, |view| view.ran);
        ran.saturating_sub(self.baseline.get(vcpu).copied().unwrap_or(0))
    }

    /// Throttles the leaders of `guest`, and unthrottles vCPUs whose siblings have caught up.
    fn balance(&self, guest: usize, state: &SchedState, out: &mut Vec<Decision>) {
        // An idle vCPU makes no progress, and does not hold its siblings back.
        let is_busy =
            |vcpu: &Vcpu| state.vcpus.get(*vcpu).is_some_and(|view| !view.is_asleep || view.is_throttled);
        let progress = state.of_guest(guest).filter(is_busy).map(|vcpu| self.progress(vcpu, state));
        let Some(slowest) = progress.min() else { return };
        for vcpu in state.of_guest(guest) {
            let lead = self.progress(vcpu, state).saturating_sub(slowest);
            let is_throttled = state.vcpus.get(vcpu).is_some_and(|view| view.is_throttled);
            if !is_throttled && lead > self.skew {
                out.push(Decision::Throttle { vcpu });
            } else if is_throttled && lead < self.restart {
                out.push(Decision::Unthrottle { vcpu });
            }
        }
    }
}

impl Policy for Relaxed {
    fn needs(&self) -> Needs {
        Needs { cpu_time: true, ..Needs::default() }
    }

    fn decide(&mut self, event: Event, state: &SchedState, out: &mut Vec<Decision>) {
        match event {
            Event::Begin => {
                self.baseline = state.vcpus.iter().map(|view| view.ran).collect();
                out.push(Decision::Alarm { at: state.now + self.period });
            }
            Event::Alarm { due } => {
                (0..state.guests()).for_each(|guest| self.balance(guest, state, out));
                out.push(Decision::Alarm { at: state.forward(due, self.period) });
            }
            _ => {}
        }
    }
}
