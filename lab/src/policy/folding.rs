//! Folding: a guest runs on fewer vCPUs while the host has too few CPUs for all of them.
//!
//! Every `period` the policy computes the steal ratio of each guest: time waited over time wanted.
//! Above `high` it folds one vCPU, at or below `low` it unfolds one; `min` vCPUs always run. It
//! folds a vCPU only while that neither holds nor waits for a lock, so nothing in the guest waits
//! for a folded vCPU.
//!
//! Source: the steal governor (lkml, April to September 2026), which folds tasks in the guest; the
//! defaults are its.

use super::parameters::{ParameterError, Parameters};
use super::{Decision, Event, Needs, Ns, Policy, SchedState, Vcpu};

/// Interval (ns) at which the policy retries to fold a vCPU that holds or wants a lock.
const RETRY: Ns = 50_000;

/// Policy `folding`.
#[derive(Clone, Debug)]
pub struct Folding {
    high: f64,
    low: f64,
    period: Ns,
    min: usize,
    /// End of the current period (ns).
    period_end: Ns,
    guests: Vec<GuestFold>,
}

#[derive(Clone, Copy, Debug, Default)]
struct GuestFold {
    /// CPU time of all its vCPUs at the start of the period (ns).
    ran: Ns,
    /// Waiting time of all its vCPUs at the start of the period (ns).
    waited: Ns,
    /// The vCPU to fold as soon as it neither holds nor waits for a lock.
    candidate: Option<Vcpu>,
}

impl Folding {
    /// Parameters: `high`, `low`, `period` and `min`.
    ///
    /// # Errors
    /// [`ParameterError`] for a value that cannot be parsed.
    pub fn from_parameters(parameters: &mut Parameters<'_>) -> Result<Self, ParameterError> {
        Ok(Self {
            high: parameters.fraction("high", 0.05)?,
            low: parameters.fraction("low", 0.02)?,
            period: parameters.time("period", 100_000_000)?,
            min: parameters.number("min", 1, 1..=255)?,
            period_end: 0,
            guests: Vec::new(),
        })
    }

    /// Time ran and waited (ns), summed over the vCPUs of `guest`.
    fn times(guest: usize, state: &SchedState) -> (Ns, Ns) {
        let views = || state.vcpus.iter().filter(|view| view.guest == guest);
        (views().map(|view| view.ran).sum(), views().map(|view| view.waited).sum())
    }

    /// Selects a vCPU of `guest` to fold, or unfolds one, by the steal ratio of the period that
    /// ends now.
    fn evaluate(&mut self, guest: usize, state: &SchedState, out: &mut Vec<Decision>) {
        let (ran, waited) = Self::times(guest, state);
        let Some(fold) = self.guests.get_mut(guest) else { return };
        let (ran_now, waited_now) = (ran.saturating_sub(fold.ran), waited.saturating_sub(fold.waited));
        (fold.ran, fold.waited) = (ran, waited);
        let steal = waited_now as f64 / ((ran_now + waited_now) as f64).max(1.0);
        let is_folded = |vcpu: &Vcpu| state.vcpus.get(*vcpu).is_some_and(|view| view.is_throttled);
        let unfolded: Vec<_> = state.of_guest(guest).filter(|vcpu| !is_folded(vcpu)).collect();
        fold.candidate = None;
        if steal > self.high && unfolded.len() > self.min {
            fold.candidate = unfolded.last().copied();
        } else if steal <= self.low
            && let Some(vcpu) = state.of_guest(guest).find(is_folded)
        {
            out.push(Decision::Unthrottle { vcpu });
        }
    }

    /// Folds each candidate that neither holds nor waits for a lock.
    fn fold(&mut self, state: &SchedState, out: &mut Vec<Decision>) {
        for fold in &mut self.guests {
            let is_lock_free = |vcpu: &Vcpu| {
                let hints = state.hints(*vcpu);
                hints.locks_held == 0 && hints.waiting_since_tsc.is_none()
            };
            if let Some(vcpu) = fold.candidate.filter(is_lock_free) {
                fold.candidate = None;
                out.push(Decision::Throttle { vcpu });
            }
        }
    }
}

impl Policy for Folding {
    fn needs(&self) -> Needs {
        Needs { guest_hints: true, cpu_time: true, ..Needs::default() }
    }

    fn decide(&mut self, event: Event, state: &SchedState, out: &mut Vec<Decision>) {
        match event {
            Event::Begin => {
                let fold = |guest| {
                    let (ran, waited) = Self::times(guest, state);
                    GuestFold { ran, waited, candidate: None }
                };
                self.guests = (0..state.guests()).map(fold).collect();
                self.period_end = state.now + self.period;
                out.push(Decision::Alarm { at: self.period_end });
            }
            Event::Alarm { .. } => {
                if state.now >= self.period_end {
                    (0..self.guests.len()).for_each(|guest| self.evaluate(guest, state, out));
                    self.period_end = state.forward(self.period_end, self.period);
                }
                self.fold(state, out);
                let has_candidate = self.guests.iter().any(|fold| fold.candidate.is_some());
                let at = if has_candidate { state.now + RETRY } else { self.period_end };
                out.push(Decision::Alarm { at: at.min(self.period_end) });
            }
            _ => {}
        }
    }
}
