//! Throttle: the host schedules, until the guest has used its quota of the period. Then all its
//! vCPUs are throttled.
//!
//! This is the kernel's CFS bandwidth control: `quota` of CPU time in each `period`, of which up to
//! `burst` more accumulates. The policy checks usage every `slice`. A guest can be throttled while
//! it holds a lock, which stalls all its vCPUs.
//!
//! Source: Linux `Documentation/scheduler/sched-bwc.rst`.

use super::parameters::{ParameterError, Parameters};
use super::{Decision, Event, Needs, Ns, Policy, SchedState};

/// Policy `throttle`.
#[derive(Clone, Debug)]
pub struct Throttle {
    quota: Ns,
    period: Ns,
    burst: Ns,
    slice: Ns,
    period_end: Ns,
    guests: Vec<Bandwidth>,
}

/// Bandwidth of a guest.
#[derive(Clone, Copy, Debug, Default)]
struct Bandwidth {
    /// Remaining runtime (ns); negative after an overrun.
    left: i64,
    /// CPU time of the guest at the last check (ns).
    ran: Ns,
    is_throttled: bool,
}

impl Throttle {
    /// Parameters: `quota`, `period`, `burst` and `slice`.
    ///
    /// # Errors
    /// [`ParameterError`] for a value that cannot be parsed.
    pub fn from_parameters(parameters: &mut Parameters<'_>) -> Result<Self, ParameterError> {
        let period = parameters.time("period", 100_000_000)?;
        Ok(Self {
            quota: parameters.time("quota", period)?,
            period,
            burst: parameters.time("burst", 0)?,
            slice: parameters.time("slice", 5_000_000)?,
            period_end: 0,
            guests: Vec::new(),
        })
    }

    /// CPU time of `guest` so far (ns).
    fn ran(guest: usize, state: &SchedState) -> Ns {
        state.of_guest(guest).filter_map(|vcpu| Some(state.vcpus.get(vcpu)?.ran)).sum()
    }

    /// Charges each guest, refills it at the end of a period, and throttles or unthrottles it.
    fn check(&mut self, due: Ns, state: &SchedState, out: &mut Vec<Decision>) {
        let is_refill = state.now >= self.period_end;
        if is_refill {
            self.period_end = state.forward(self.period_end, self.period);
        }
        for (guest, bandwidth) in self.guests.iter_mut().enumerate() {
            let ran = Self::ran(guest, state);
            bandwidth.left = bandwidth.left.saturating_sub_unsigned(ran.saturating_sub(bandwidth.ran));
            bandwidth.ran = ran;
            if is_refill {
                let limit = i64::try_from(self.quota.saturating_add(self.burst)).unwrap_or(i64::MAX);
                bandwidth.left = bandwidth.left.saturating_add_unsigned(self.quota).min(limit);
            }
            let is_throttled = bandwidth.left <= 0;
            if std::mem::replace(&mut bandwidth.is_throttled, is_throttled) != is_throttled {
                let change = |vcpu| {
                    if is_throttled { Decision::Throttle { vcpu } } else { Decision::Unthrottle { vcpu } }
                };
                out.extend(state.of_guest(guest).map(change));
            }
        }
        out.push(Decision::Alarm { at: state.forward(due, self.slice).min(self.period_end) });
    }
}

impl Policy for Throttle {
    fn needs(&self) -> Needs {
        Needs { cpu_time: true, ..Needs::default() }
    }

    fn decide(&mut self, event: Event, state: &SchedState, out: &mut Vec<Decision>) {
        match event {
            Event::Begin => {
                let left = i64::try_from(self.quota).unwrap_or(i64::MAX);
                let bandwidth = |guest| Bandwidth { left, ran: Self::ran(guest, state), is_throttled: false };
                self.guests = (0..state.guests()).map(bandwidth).collect();
                self.period_end = state.now + self.period;
                out.push(Decision::Alarm { at: state.now + self.slice.min(self.period) });
            }
            Event::Alarm { due } => self.check(due, state, out),
            _ => {}
        }
    }
}
