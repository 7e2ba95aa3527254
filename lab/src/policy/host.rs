//! Host: the host's scheduler decides. The policy only sets affinity, nice value and slice.
//!
//! Policy `balance` is this policy with each vCPU pinned to its home CPU, so that siblings occupy
//! distinct CPUs.
//!
//! Source: Linux `kernel/sched/fair.c`; balance scheduling: Sukwong and Kim, `EuroSys` 2011.

use super::parameters::{ParameterError, Parameters};
use super::{Decision, Event, Ns, Policy, SchedState};

/// Policies `host` and `balance`: decide once, at the start, and leave all CPUs to the host.
#[derive(Clone, Debug)]
pub struct Host {
    nice: i8,
    slice: Ns,
    is_pinned: bool,
}

impl Host {
    /// Parameters: `nice`, as in nice(2); `slice`, the requested slice; `affinity`, `any` or
    /// `home`.
    ///
    /// # Errors
    /// [`ParameterError`] for a value that cannot be parsed.
    pub fn from_parameters(parameters: &mut Parameters<'_>) -> Result<Self, ParameterError> {
        Ok(Self {
            nice: parameters.number("nice", 0, -20..=19)?,
            slice: parameters.time("slice", 0)?,
            is_pinned: parameters.one_of("affinity", &["any", "home"])? == "home",
        })
    }

    /// Balance scheduling: pins each vCPU to its home CPU. Siblings share a CPU only if the guest
    /// has more vCPUs than there are CPUs.
    pub fn balance() -> Self {
        Self { nice: 0, slice: 0, is_pinned: true }
    }
}

impl Policy for Host {
    fn decide(&mut self, event: Event, state: &SchedState, out: &mut Vec<Decision>) {
        if event != Event::Begin {
            return;
        }
        for (vcpu, view) in state.vcpus.iter().enumerate() {
            if self.is_pinned {
                out.push(Decision::Migrate { vcpu, cpu: view.home });
            }
            if self.nice != 0 || self.slice != 0 {
                out.push(Decision::Tune { vcpu, nice: self.nice, slice: self.slice });
            }
        }
    }
}
