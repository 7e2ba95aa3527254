//! The adversary: round robin, but it looks for the worst moment to take a CPU away.
//!
//! Each `look` it looks for a running vCPU that holds a lock (`target=holder`), or that has waited for one for longest (`next`),
//! while `waiters` others of its guest wait. With chance `p` it takes that one's CPU for a quantum, `delay` after it has seen
//! it. What a lock keeps under it is the least that it keeps under any policy of that quantum.

use fastrand::Rng;

use super::parameters::{ParameterError, Parameters};
use super::round_robin::RoundRobin;
use super::{Decision, Event, Ns, Policy, Scene, Vcpu, Wants};

/// See the module.
#[derive(Clone, Debug)]
pub struct Adversary {
    base: RoundRobin,
    hits_next: bool,
    chance: f64,
    delay: Ns,
    waiters: usize,
    look: Ns,
    rng: Rng,
    /// Whom it will strike, and when.
    strikes: Vec<(Ns, Vcpu)>,
}

impl Adversary {
    /// Round robin's parameters, `target`, `p`, `delay`, `waiters` and `look`.
    ///
    /// # Errors
    /// [`ParameterError`].
    pub fn from_parameters(parameters: &mut Parameters<'_>, seed: u64) -> Result<Self, ParameterError> {
        Ok(Self {
            base: RoundRobin::from_parameters(parameters, seed)?,
            hits_next: parameters.word("target", &["holder", "next"])? == "next",
            chance: parameters.share("p", 1.0)?,
            delay: parameters.text("delay").map_or(Ok(0), |value| {
                super::parameters::time(value).ok_or_else(|| ParameterError::Value {
                    key: "delay".to_owned(),
                    value: value.to_owned(),
                    expected: "a time, as in 0us or 20us".to_owned(),
                })
            })?,
            waiters: parameters.number("waiters", 1, 0..=1_000)?,
            look: parameters.time("look", 500_000)?,
            rng: Rng::with_seed(seed ^ 0xad5e),
            strikes: Vec::new(),
        })
    }

    fn victim(&self, guest: usize, scene: &Scene) -> Option<Vcpu> {
        let victim = if self.hits_next { scene.next_in_line(guest) } else { scene.holder(guest) };
        victim.filter(|vcpu| scene.cpu_of(*vcpu).is_some() && scene.waiters(guest) >= self.waiters)
    }

    fn strike(&mut self, victim: Vcpu, scene: &Scene, out: &mut Vec<Decision>) {
        let Some(cpu) = scene.cpu_of(victim) else { return };
        let is_hit =
            out.iter().any(|decision| matches!(decision, Decision::Run { cpu: at, .. } if *at == cpu));
        if is_hit {
            return;
        }
        if let Some(vcpu) = self.base.next(cpu, scene).filter(|vcpu| *vcpu != victim) {
            out.push(Decision::Run { cpu, vcpu, until: scene.now + self.base.quantum() });
        }
    }
}

impl Policy for Adversary {
    fn wants(&self) -> Wants {
        self.base.wants().and(Wants { told: true, ..Wants::default() })
    }

    fn decide(&mut self, event: Event, scene: &Scene, out: &mut Vec<Decision>) {
        match event {
            Event::Begin => {
                self.strikes.clear();
                self.base.decide(event, scene, out);
                out.push(Decision::Alarm { at: scene.now + self.look });
            }
            Event::Alarm { due } => {
                let ripe = self.strikes.partition_point(|(at, _)| *at <= scene.now);
                for (_, victim) in self.strikes.drain(..ripe).collect::<Vec<_>>() {
                    self.strike(victim, scene, out);
                }
                for guest in 0..scene.guests() {
                    let Some(victim) = self.victim(guest, scene) else { continue };
                    if self.rng.f64() >= self.chance {
                        continue;
                    }
                    if self.delay == 0 {
                        self.strike(victim, scene, out);
                    } else {
                        self.strikes.push((scene.now + self.delay, victim));
                    }
                }
                let next = scene.after(due, self.look);
                let at = self.strikes.first().map_or(next, |(at, _)| next.min(*at));
                out.push(Decision::Alarm { at });
            }
            _ => self.base.decide(event, scene, out),
        }
    }
}
