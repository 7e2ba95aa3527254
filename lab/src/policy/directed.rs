//! Directed yield: round robin, and a waiter can yield its CPU to the vCPU that it waits for.
//!
//! - `target` selects the boosted vCPU: the one that the waiter names (`named`), a lock holder
//!   (`holder`), the longest waiter if nothing holds a lock (`next`, which suits FIFO locks), or
//!   any preempted sibling in turn (`any`, as KVM does without information about the lock).
//! - `grant` limits the boost. The waiter then continues.
//! - `sustain=on` extends the boost to the rest of the waiter's slice. A waiter can do this once in
//!   `rate`. A boosted vCPU cannot yield within `pingpong`.
//!
//! Source: KVM's `kvm_vcpu_on_spin`; "Boost queue head", Linux 266e85a5ec91; the vCPU debooster,
//! lkml November 2025.

use super::parameters::{ParameterError, Parameters};
use super::round_robin::RoundRobin;
use super::{Decision, Event, Needs, Ns, Policy, SchedState, Vcpu};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Named,
    Holder,
    Next,
    Any,
}

/// Policy `yield`.
#[derive(Clone, Debug)]
pub struct Directed {
    base: RoundRobin,
    target: Target,
    grant: Ns,
    sustains: bool,
    rate: Ns,
    pingpong: Ns,
    /// Last time (ns) that each vCPU yielded.
    yielded: Vec<Option<Ns>>,
    /// Last time (ns) that each vCPU was boosted.
    boosted: Vec<Option<Ns>>,
    /// The last target of [`Target::Any`], as in KVM's `last_boosted_vcpu`.
    last_boosted: Vcpu,
}

impl Directed {
    /// Parameters: those of `rr`, and `target`, `grant`, `sustain`, `rate` and `pingpong`.
    ///
    /// # Errors
    /// [`ParameterError`] for a value that cannot be parsed.
    pub fn from_parameters(parameters: &mut Parameters<'_>) -> Result<Self, ParameterError> {
        Ok(Self {
            base: RoundRobin::from_parameters(parameters)?,
            target: match parameters.one_of("target", &["named", "holder", "next", "any"])? {
                "holder" => Target::Holder,
                "next" => Target::Next,
                "any" => Target::Any,
                _ => Target::Named,
            },
            grant: parameters.time("grant", 200_000)?,
            sustains: parameters.on_off("sustain")?,
            rate: parameters.time("rate", 6_000_000)?,
            pingpong: parameters.time("pingpong", 600_000)?,
            yielded: Vec::new(),
            boosted: Vec::new(),
            last_boosted: 0,
        })
    }

    /// The vCPU to boost when `from` yields and names `to`; `None` if it runs already or is halted.
    fn pick(&mut self, from: Vcpu, to: Vcpu, state: &SchedState) -> Option<Vcpu> {
        let guest = state.vcpus.get(from)?.guest;
        let is_preempted = |vcpu: &Vcpu| {
            let halted = state.hints(*vcpu).is_halted;
            state.may_run(*vcpu) && !halted && state.cpu_of(*vcpu).is_none()
        };
        match self.target {
            Target::Named => Some(to).filter(is_preempted),
            Target::Holder => state.holder(guest).filter(is_preempted),
            // Between two owners, a FIFO lock waits for its longest waiter.
            Target::Next => state.holder(guest).or_else(|| state.longest_waiter(guest)).filter(is_preempted),
            Target::Any => {
                let all: Vec<_> = state.of_guest(guest).filter(is_preempted).collect();
                let next = all.iter().copied().find(|vcpu| *vcpu > self.last_boosted);
                self.last_boosted = next.or_else(|| all.first().copied())?;
                Some(self.last_boosted)
            }
        }
    }

    /// Whether the limits on sustained yields allow `from` to yield at `now` (ns).
    fn may_yield(&self, from: Vcpu, now: Ns) -> bool {
        let has_passed = |times: &[Option<Ns>], time| {
            times.get(from).copied().flatten().is_none_or(|at| now.saturating_sub(at) >= time)
        };
        !self.sustains || has_passed(&self.yielded, self.rate) && has_passed(&self.boosted, self.pingpong)
    }

    fn yield_to(&mut self, from: Vcpu, to: Vcpu, state: &SchedState, out: &mut Vec<Decision>) {
        // A waiter that has lost its CPU since it asked has nothing to yield.
        let Some(cpu) = state.cpu_of(from).filter(|_| self.may_yield(from, state.now)) else { return };
        let Some(vcpu) = self.pick(from, to, state) else { return };
        let end = state.slice_end(cpu);
        let until = if self.sustains { end } else { end.min(state.now + self.grant) };
        if until > state.now {
            self.yielded[from] = Some(state.now);
            self.boosted[vcpu] = Some(state.now);
            out.push(Decision::Boost { cpu, vcpu, until });
        }
    }
}

impl Policy for Directed {
    fn needs(&self) -> Needs {
        let own = Needs { guest_hints: true, doorbell: true, yield_targets: true, ..Needs::default() };
        self.base.needs().union(own)
    }

    fn decide(&mut self, event: Event, state: &SchedState, out: &mut Vec<Decision>) {
        match event {
            Event::Begin => {
                self.yielded = vec![None; state.vcpus.len()];
                self.boosted = vec![None; state.vcpus.len()];
                self.base.decide(event, state, out);
            }
            Event::YieldTo { from, to } => self.yield_to(from, to, state, out),
            _ => self.base.decide(event, state, out),
        }
    }
}
