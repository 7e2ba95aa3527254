//! Adversary: round robin that preempts a vCPU at the worst moment.
//!
//! Every `period` the policy looks for a running vCPU that holds a lock (`target=holder`) or has
//! waited longest for one (`target=next`), while at least `waiters` siblings wait. With probability
//! `p` it preempts that vCPU for one slice, after `delay`. The throughput that a lock retains is a
//! lower bound for policies with this slice.
//!
//! Source: this repository.

use fastrand::Rng;

use super::parameters::{ParameterError, Parameters};
use super::round_robin::RoundRobin;
use super::{Decision, Event, Needs, Ns, Policy, SchedState, Vcpu};

/// Policy `adversary`.
#[derive(Clone, Debug)]
pub struct Adversary {
    base: RoundRobin,
    targets_waiter: bool,
    probability: f64,
    delay: Ns,
    waiters: usize,
    period: Ns,
    rng: Rng,
    /// Delayed preemptions: time (ns) and victim.
    pending: Vec<(Ns, Vcpu)>,
}

impl Adversary {
    /// Parameters: those of `rr`, and `target`, `p`, `delay`, `waiters` and `period`.
    ///
    /// # Errors
    /// [`ParameterError`] for a value that cannot be parsed.
    pub fn from_parameters(parameters: &mut Parameters<'_>) -> Result<Self, ParameterError> {
        Ok(Self {
            base: RoundRobin::from_parameters(parameters)?,
            targets_waiter: parameters.one_of("target", &["holder", "next"])? == "next",
            probability: parameters.fraction("p", 1.0)?,
            delay: parameters.time_or_zero("delay", 0)?,
            waiters: parameters.number("waiters", 1, 0..=1_000)?,
            period: parameters.time("period", 500_000)?,
            rng: Rng::with_seed(parameters.seed() ^ 0xad5e),
            pending: Vec::new(),
        })
    }

    /// The vCPU of `guest` whose preemption hurts most now.
    fn victim(&self, guest: usize, state: &SchedState) -> Option<Vcpu> {
        let victim = if self.targets_waiter { state.longest_waiter(guest) } else { state.holder(guest) };
        victim.filter(|vcpu| state.cpu_of(*vcpu).is_some() && state.waiters(guest) >= self.waiters)
    }

    /// Gives the CPU of `victim` to the next vCPU, unless a decision for that CPU is pending.
    fn preempt(&mut self, victim: Vcpu, state: &SchedState, out: &mut Vec<Decision>) {
        let Some(cpu) = state.cpu_of(victim) else { return };
        let is_decided =
            out.iter().any(|decision| matches!(decision, Decision::Run { cpu: at, .. } if *at == cpu));
        if is_decided {
            return;
        }
        if let Some(vcpu) = self.base.pick_next(cpu, state).filter(|vcpu| *vcpu != victim) {
            out.push(Decision::Run { cpu, vcpu, until: state.now + self.base.slice() });
        }
    }

    fn check_all(&mut self, due: Ns, state: &SchedState, out: &mut Vec<Decision>) {
        let expired = self.pending.partition_point(|(at, _)| *at <= state.now);
        for (_, victim) in self.pending.drain(..expired).collect::<Vec<_>>() {
            self.preempt(victim, state, out);
        }
        for guest in 0..state.guests() {
            let Some(victim) = self.victim(guest, state) else { continue };
            if self.rng.f64() >= self.probability {
                continue;
            }
            if self.delay == 0 {
                self.preempt(victim, state, out);
            } else {
                self.pending.push((state.now + self.delay, victim));
            }
        }
        let next = state.forward(due, self.period);
        let at = self.pending.first().map_or(next, |(at, _)| next.min(*at));
        out.push(Decision::Alarm { at });
    }
}

impl Policy for Adversary {
    fn needs(&self) -> Needs {
        self.base.needs().union(Needs { guest_hints: true, ..Needs::default() })
    }

    fn decide(&mut self, event: Event, state: &SchedState, out: &mut Vec<Decision>) {
        match event {
            Event::Begin => {
                self.pending.clear();
                self.base.decide(event, state, out);
                out.push(Decision::Alarm { at: state.now + self.period });
            }
            Event::Alarm { due } => self.check_all(due, state, out),
            _ => self.base.decide(event, state, out),
        }
    }
}
