//! Directed yield: a waiter names whom it waits for, and that one has the waiter's CPU.
//!
//! - `target` is who gets it: whom the waiter names (`named`), whoever holds a lock (`holder`), whoever has waited for longest
//!   (`next`: with locks that pass themselves on, the next in line), or any that does not run, in turn (`any`), which is what
//!   KVM does where it knows no better.
//! - `grant` is for how long; then the waiter goes on.
//! - `sustain=on` lets the favour last for the rest of the waiter's turn, or it would often be taken back before it was of use;
//!   a waiter can do that once in `rate`, and one that was itself favoured gives nothing back within `pingpong`.
//!
//! Source: KVM's `kvm_vcpu_on_spin`; "Boost queue head", Linux 266e85a5ec91; the vCPU debooster, lkml November 2025.

use super::parameters::{ParameterError, Parameters};
use super::round_robin::RoundRobin;
use super::{Decision, Event, Ns, Policy, Scene, Vcpu, Wants};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Named,
    Holder,
    Next,
    Any,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Directed {
    base: RoundRobin,
    target: Target,
    grant: Ns,
    sustains: bool,
    rate: Ns,
    pingpong: Ns,
    /// When each vCPU last gave, and was last given, something.
    gave: Vec<Option<Ns>>,
    given: Vec<Option<Ns>>,
    /// Who was favoured last, where it is anybody's turn.
    last: Vcpu,
}

impl Directed {
    /// Round robin's parameters, `target`, `grant`, `sustain`, `rate` and `pingpong`.
    ///
    /// # Errors
    /// [`ParameterError`].
    pub fn from_parameters(parameters: &mut Parameters<'_>, seed: u64) -> Result<Self, ParameterError> {
        Ok(Self {
            base: RoundRobin::from_parameters(parameters, seed)?,
            target: match parameters.word("target", &["named", "holder", "next", "any"])? {
                "holder" => Target::Holder,
                "next" => Target::Next,
                "any" => Target::Any,
                _ => Target::Named,
            },
            grant: parameters.time("grant", 200_000)?,
            sustains: parameters.switch("sustain")?,
            rate: parameters.time("rate", 6_000_000)?,
            pingpong: parameters.time("pingpong", 600_000)?,
            gave: Vec::new(),
            given: Vec::new(),
            last: 0,
        })
    }

    /// Who is to have the CPU of `from`, which names `to`.
    fn pick(&mut self, from: Vcpu, to: Vcpu, scene: &Scene) -> Option<Vcpu> {
        let guest = scene.vcpus.get(from)?.guest;
        let is_off = |vcpu: &Vcpu| {
            let halted = scene.told(*vcpu).is_halted;
            scene.may_run(*vcpu) && !halted && scene.cpu_of(*vcpu).is_none()
        };
        match self.target {
            Target::Named => Some(to).filter(is_off),
            Target::Holder => scene.holder(guest).filter(is_off),
            // Between two holders the next in line is who the lock waits for.
            Target::Next => scene.holder(guest).or_else(|| scene.next_in_line(guest)).filter(is_off),
            Target::Any => {
                let all: Vec<_> = scene.of_guest(guest).filter(is_off).collect();
                let next =
                    all.iter().copied().find(|vcpu| *vcpu > self.last).or_else(|| all.first().copied())?;
                self.last = next;
                Some(next)
            }
        }
    }

    fn may_give(&self, from: Vcpu, now: Ns) -> bool {
        let long_ago = |times: &[Option<Ns>], time| {
            times.get(from).copied().flatten().is_none_or(|at| now.saturating_sub(at) >= time)
        };
        !self.sustains || long_ago(&self.gave, self.rate) && long_ago(&self.given, self.pingpong)
    }
}

impl Policy for Directed {
    fn wants(&self) -> Wants {
        self.base.wants().and(Wants { told: true, rings: true, yields: true, ..Wants::default() })
    }

    fn decide(&mut self, event: Event, scene: &Scene, out: &mut Vec<Decision>) {
        let Event::YieldTo { from, to } = event else {
            if event == Event::Begin {
                self.gave = vec![None; scene.vcpus.len()];
                self.given = vec![None; scene.vcpus.len()];
            }
            return self.base.decide(event, scene, out);
        };
        // One that has lost its CPU since has nothing to give.
        let Some(cpu) = scene.cpu_of(from).filter(|_| self.may_give(from, scene.now)) else { return };
        let Some(vcpu) = self.pick(from, to, scene) else { return };
        let end = scene.cpus.get(cpu).map_or(scene.now, |cpu| cpu.until);
        let until = if self.sustains { end } else { end.min(scene.now + self.grant) };
        if until > scene.now {
            self.gave[from] = Some(scene.now);
            self.given[vcpu] = Some(scene.now);
            out.push(Decision::Boost { cpu, vcpu, until });
        }
    }
}
