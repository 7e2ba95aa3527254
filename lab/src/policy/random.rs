//! Random: round robin in turns of random length. It takes the luck of phases away: rounds with other seeds are other draws.

use fastrand::Rng;

use super::parameters::{ParameterError, Parameters};
use super::round_robin::{RoundRobin, rngs};
use super::{Cpu, Decision, Event, Ns, Policy, Scene};

/// How long turns are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spread {
    Exponential,
    /// Heavy-tailed: most are short, some are very long.
    Pareto,
    Uniform,
}

/// The shape of the Pareto distribution: its mean exists, its variance does not.
const SHAPE: f64 = 1.5;

/// See the module.
#[derive(Clone, Debug)]
pub struct Random {
    mean: Ns,
    least: Ns,
    most: Ns,
    spread: Spread,
    seed: u64,
    rngs: Vec<Rng>,
    base: RoundRobin,
}

impl Random {
    /// `mean`, of the turns; `spread=exp`, `pareto` or `uniform`; none is shorter than `least` or longer than `most`.
    ///
    /// # Errors
    /// [`ParameterError`].
    pub fn from_parameters(parameters: &mut Parameters<'_>, seed: u64) -> Result<Self, ParameterError> {
        let mean = parameters.turn("mean", 3_000_000)?;
        let least = parameters.turn("least", 100_000)?;
        Ok(Self {
            mean,
            least,
            most: parameters.time("most", 100_000_000)?.max(least),
            spread: match parameters.word("spread", &["exp", "pareto", "uniform"])? {
                "pareto" => Spread::Pareto,
                "uniform" => Spread::Uniform,
                _ => Spread::Exponential,
            },
            seed,
            rngs: Vec::new(),
            base: RoundRobin::new(mean),
        })
    }

    fn length(&mut self, cpu: Cpu) -> Ns {
        // From 0, exclusive, to 1.
        let chance = 1.0 - self.rngs.get_mut(cpu).map_or(0.5, Rng::f64);
        let mean = self.mean as f64;
        let length = match self.spread {
            Spread::Exponential => -mean * chance.ln(),
            Spread::Pareto => mean * (SHAPE - 1.0) / SHAPE * chance.powf(-1.0 / SHAPE),
            Spread::Uniform => 2.0 * mean * chance,
        };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "positive, and then bounded"
        )]
        (length as Ns).clamp(self.least, self.most)
    }

    fn give(&mut self, cpu: Cpu, due: Ns, scene: &Scene, out: &mut Vec<Decision>) {
        // A turn that is over before it begins, because we are told late, is one of the least length.
        let until = (due + self.length(cpu)).max(scene.now + self.least);
        out.push(match self.base.next(cpu, scene) {
            Some(vcpu) => Decision::Run { cpu, vcpu, until },
            None => Decision::Idle { cpu, until },
        });
    }
}

impl Policy for Random {
    fn decide(&mut self, event: Event, scene: &Scene, out: &mut Vec<Decision>) {
        match event {
            Event::Begin => {
                *self.base.lines() = super::Lines::by_home(scene);
                self.rngs = rngs(self.seed, scene);
                (0..scene.cpus.len()).for_each(|cpu| self.give(cpu, scene.now, scene, out));
            }
            Event::Tick { cpu, due } => self.give(cpu, due, scene, out),
            _ => {}
        }
    }
}
