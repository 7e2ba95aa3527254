//! Round robin: on each CPU the next one, after a quantum.
//!
//! All CPUs change at the same moments (`phase=aligned`), or each at its own (`staggered`). With `jitter` each turn is longer or
//! shorter by so large a part of the quantum at most. With `halts=next` a vCPU that has nothing to do gives up its turn.

use fastrand::Rng;

use super::parameters::{ParameterError, Parameters};
use super::{Cpu, Decision, Event, Lines, Ns, Policy, Scene, Vcpu, Wants};

/// See the module.
#[derive(Clone, Debug)]
pub struct RoundRobin {
    quantum: Ns,
    jitter: f64,
    is_staggered: bool,
    gives_up: bool,
    seed: u64,
    /// One for each CPU: in whichever order they are asked about, each draws the same.
    rngs: Vec<Rng>,
    lines: Lines,
}

impl RoundRobin {
    /// Turns of `quantum` ns, aligned.
    pub fn new(quantum: Ns) -> Self {
        Self {
            quantum: quantum.max(1),
            jitter: 0.0,
            is_staggered: false,
            gives_up: false,
            seed: 0,
            rngs: Vec::new(),
            lines: Lines::default(),
        }
    }

    /// What `parameters` ask for.
    ///
    /// # Errors
    /// [`ParameterError`].
    pub fn from_parameters(parameters: &mut Parameters<'_>, seed: u64) -> Result<Self, ParameterError> {
        Ok(Self {
            jitter: parameters.share("jitter", 0.0)?,
            is_staggered: parameters.word("phase", &["aligned", "staggered"])? == "staggered",
            gives_up: parameters.word("halts", &["keep", "next"])? == "next",
            seed,
            ..Self::new(parameters.turn("quantum", 3_000_000)?)
        })
    }

    /// The length of a turn.
    pub fn quantum(&self) -> Ns {
        self.quantum
    }

    /// Who comes next on `cpu`; that one then stands last.
    pub fn next(&mut self, cpu: Cpu, scene: &Scene) -> Option<Vcpu> {
        let is_wanted = |vcpu| scene.may_run_on(cpu, vcpu) && !(self.gives_up && scene.told(vcpu).is_halted);
        // Where all have nothing to do, one of them has its turn all the same: it may be woken in it.
        self.lines.next(cpu, is_wanted).or_else(|| self.lines.next(cpu, |vcpu| scene.may_run_on(cpu, vcpu)))
    }

    /// Who waits at `cpu` in which order.
    pub fn lines(&mut self) -> &mut Lines {
        &mut self.lines
    }

    /// Until when a turn lasts that begins where one was due to end.
    pub fn turn(&mut self, cpu: Cpu, due: Ns, scene: &Scene) -> Ns {
        let longest = self.quantum as f64 * self.jitter;
        let chance = self.rngs.get_mut(cpu).map_or(0.5, Rng::f64);
        let change = longest * (2.0 * chance - 1.0);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "rounded, and not less than 1"
        )]
        let step = (self.quantum as f64 + change).max(1.0) as Ns;
        scene.after(due, step)
    }

    /// Gives `cpu` to the next one, or to nobody, for a turn.
    pub fn give(&mut self, cpu: Cpu, due: Ns, scene: &Scene, out: &mut Vec<Decision>) {
        let until = self.turn(cpu, due, scene);
        out.push(match self.next(cpu, scene) {
            Some(vcpu) => Decision::Run { cpu, vcpu, until },
            None => Decision::Idle { cpu, until },
        });
    }
}

/// A source of randomness for each CPU.
pub fn rngs(seed: u64, scene: &Scene) -> Vec<Rng> {
    let mut first = Rng::with_seed(seed);
    scene.cpus.iter().map(|_| first.fork()).collect()
}

impl Policy for RoundRobin {
    fn wants(&self) -> Wants {
        Wants { told: self.gives_up, rings: self.gives_up, ..Wants::default() }
    }

    fn decide(&mut self, event: Event, scene: &Scene, out: &mut Vec<Decision>) {
        match event {
            Event::Begin => {
                self.lines = Lines::by_home(scene);
                self.rngs = rngs(self.seed, scene);
                let cpus = self.lines.cpus();
                for cpu in 0..cpus {
                    // Staggered, the first turns are of all lengths up to a quantum.
                    let early = if self.is_staggered { self.quantum * cpu as Ns / cpus as Ns } else { 0 };
                    self.give(cpu, scene.now.saturating_sub(early), scene, out);
                }
            }
            Event::Tick { cpu, due } => self.give(cpu, due, scene, out),
            Event::Halted { vcpu } if self.gives_up => {
                if let Some(cpu) = scene.cpu_of(vcpu) {
                    let until = scene.cpus.get(cpu).map_or(0, |cpu| cpu.until);
                    // What is left of its turn is the next one's.
                    if let Some(vcpu) =
                        self.next(cpu, scene).filter(|next| *next != vcpu && until > scene.now)
                    {
                        out.push(Decision::Run { cpu, vcpu, until });
                    }
                }
            }
            _ => {}
        }
    }
}
