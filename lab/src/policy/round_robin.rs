//! Round robin: each CPU runs the next vCPU of its queue for one slice.
//!
//! - `phase`: all CPUs switch at the same time (`aligned`), or at evenly spaced offsets
//!   (`staggered`).
//! - `jitter`: each slice is uniformly distributed over `slice` plus or minus this fraction of it.
//!   `jitter=100%` decorrelates the schedule from the guest: repeated rounds with other seeds are
//!   independent samples.
//! - `halts`: a vCPU that halts keeps its CPU (`keep`), or the next vCPU gets the rest of the slice
//!   (`next`).
//!
//! Source: any operating systems textbook.

use fastrand::Rng;

use super::parameters::{MIN_SLICE, ParameterError, Parameters};
use super::{Cpu, Decision, Event, Needs, Ns, Policy, RunQueues, SchedState, Vcpu};

/// Policy `rr`, and the base of the policies that modify it.
#[derive(Clone, Debug)]
pub struct RoundRobin {
    slice: Ns,
    jitter: f64,
    is_staggered: bool,
    skips_halted: bool,
    seed: u64,
    /// One for each CPU, so that the order in which CPUs are handled does not change the draws.
    rngs: Vec<Rng>,
    queues: RunQueues,
}

impl RoundRobin {
    /// Aligned slices of `slice` ns without jitter.
    pub fn new(slice: Ns) -> Self {
        Self {
            slice: slice.max(1),
            jitter: 0.0,
            is_staggered: false,
            skips_halted: false,
            seed: 0,
            rngs: Vec::new(),
            queues: RunQueues::default(),
        }
    }

    /// Parameters: `slice`, `jitter`, `phase` and `halts`.
    ///
    /// # Errors
    /// [`ParameterError`] for a value that cannot be parsed.
    pub fn from_parameters(parameters: &mut Parameters<'_>) -> Result<Self, ParameterError> {
        Ok(Self {
            jitter: parameters.fraction("jitter", 0.0)?,
            is_staggered: parameters.one_of("phase", &["aligned", "staggered"])? == "staggered",
            skips_halted: parameters.one_of("halts", &["keep", "next"])? == "next",
            seed: parameters.seed(),
            ..Self::new(parameters.slice("slice", 3_000_000)?)
        })
    }

    /// Mean length of a slice (ns).
    pub fn slice(&self) -> Ns {
        self.slice
    }

    /// Picks the next vCPU for `cpu`, and moves it to the tail of the queue.
    pub fn pick_next(&mut self, cpu: Cpu, state: &SchedState) -> Option<Vcpu> {
        let skips_halted = self.skips_halted;
        let wants_to_run =
            |vcpu| state.may_run_on(cpu, vcpu) && !(skips_halted && state.hints(vcpu).is_halted);
        // If all vCPUs are halted, one gets the slice anyway: a sibling may wake it.
        self.queues
            .pick_next(cpu, wants_to_run)
            .or_else(|| self.queues.pick_next(cpu, |vcpu| state.may_run_on(cpu, vcpu)))
    }

    /// The run queues, for policies that reorder them.
    pub fn queues(&mut self) -> &mut RunQueues {
        &mut self.queues
    }

    /// End (ns) of a slice on `cpu` that follows one with the planned end `due`.
    fn next_end(&mut self, cpu: Cpu, due: Ns, state: &SchedState) -> Ns {
        let amplitude = self.slice as f64 * self.jitter;
        let draw = self.rngs.get_mut(cpu).map_or(0.5, Rng::f64);
        let jitter = amplitude * (2.0 * draw - 1.0);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "rounded, and at least 1"
        )]
        let slice = (self.slice as f64 + jitter).max(1.0) as Ns;
        state.forward(due, slice.max(MIN_SLICE.min(self.slice)))
    }

    /// Assigns `cpu` to the next vCPU for one slice, or leaves it idle if none is eligible. `due`
    /// is the planned end of the previous slice (ns).
    pub fn dispatch(&mut self, cpu: Cpu, due: Ns, state: &SchedState, out: &mut Vec<Decision>) {
        let until = self.next_end(cpu, due, state);
        out.push(match self.pick_next(cpu, state) {
            Some(vcpu) => Decision::Run { cpu, vcpu, until },
            None => Decision::Idle { cpu, until },
        });
    }
}

impl Policy for RoundRobin {
    fn needs(&self) -> Needs {
        Needs { guest_hints: self.skips_halted, doorbell: self.skips_halted, ..Needs::default() }
    }

    fn decide(&mut self, event: Event, state: &SchedState, out: &mut Vec<Decision>) {
        match event {
            Event::Begin => {
                self.queues = RunQueues::by_home(state);
                let mut root = Rng::with_seed(self.seed);
                self.rngs = state.cpus.iter().map(|_| root.fork()).collect();
                let cpus = self.queues.cpus();
                for cpu in 0..cpus {
                    // Staggered CPUs start with a partial slice.
                    let early = if self.is_staggered { self.slice * cpu as Ns / cpus as Ns } else { 0 };
                    self.dispatch(cpu, state.now.saturating_sub(early), state, out);
                }
            }
            Event::Tick { cpu, due } => self.dispatch(cpu, due, state, out),
            Event::Halted { vcpu } if self.skips_halted => {
                if let Some(cpu) = state.cpu_of(vcpu) {
                    let until = state.slice_end(cpu);
                    // The next vCPU gets the rest of the slice.
                    if let Some(vcpu) =
                        self.pick_next(cpu, state).filter(|next| *next != vcpu && until > state.now)
                    {
                        out.push(Decision::Run { cpu, vcpu, until });
                    }
                }
            }
            _ => {}
        }
    }
}
