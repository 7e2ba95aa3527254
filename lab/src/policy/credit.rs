//! Credit: vCPUs with credit left run before those without.
//!
//! Every accounting period distributes CPU time as credit, by weight; running consumes it. Each CPU
//! runs the first vCPU with credit for a `slice`, or else the first without. With `boost=on`, a
//! vCPU that wakes with credit preempts, but only after the running one has had `rate`. `cap`
//! limits a vCPU to a percentage of one CPU; 0 means no cap.
//!
//! Source: Xen's credit scheduler (wiki.xenproject.org, `Credit Scheduler`), with slices and
//! accounting periods of 30 ms.

use super::parameters::{ParameterError, Parameters};
use super::{Cpu, Decision, Event, Needs, Ns, Policy, RunQueues, SchedState, Vcpu};

/// Accounting period (ns).
const ACCOUNTING: Ns = 30_000_000;

/// Policy `credit`.
#[derive(Clone, Debug)]
pub struct Credit {
    weights: Vec<u32>,
    cap: u32,
    slice: Ns,
    rate: Ns,
    boosts: bool,
    queues: RunQueues,
    /// Credit of each vCPU (ns of CPU time).
    balances: Vec<i64>,
    /// CPU time (ns) of each vCPU in this accounting period.
    used: Vec<Ns>,
    /// Time (ns) of the last charge on each CPU.
    since: Vec<Ns>,
}

impl Credit {
    /// Parameters: `weight=256/512/...`, one for each vCPU, of which the last applies to all
    /// others; `cap`, `slice`, `rate` and `boost`.
    ///
    /// # Errors
    /// [`ParameterError`] for a value that cannot be parsed.
    pub fn from_parameters(parameters: &mut Parameters<'_>) -> Result<Self, ParameterError> {
        Ok(Self {
            weights: parameters.numbers("weight")?,
            cap: parameters.number("cap", 0, 0..=100)?,
            slice: parameters.slice("slice", 30_000_000)?,
            rate: parameters.slice("rate", 1_000_000)?,
            boosts: parameters.on_off("boost")?,
            queues: RunQueues::default(),
            balances: Vec::new(),
            used: Vec::new(),
            since: Vec::new(),
        })
    }

    fn weight(&self, vcpu: Vcpu) -> u64 {
        u64::from(self.weights.get(vcpu).or(self.weights.last()).copied().unwrap_or(256))
    }

    fn has_credit(&self, vcpu: Vcpu) -> bool {
        self.balances.get(vcpu).is_some_and(|credit| *credit > 0)
    }

    /// Charges the vCPU on `cpu` for its CPU time since the last charge.
    fn charge(&mut self, cpu: Cpu, state: &SchedState) {
        let Some(since) = self.since.get_mut(cpu) else { return };
        let ran = state.now.saturating_sub(std::mem::replace(since, state.now));
        let Some(vcpu) = state.on(cpu).filter(|vcpu| *vcpu < self.balances.len()) else { return };
        self.balances[vcpu] = self.balances[vcpu].saturating_sub_unsigned(ran);
        self.used[vcpu] += ran;
    }

    /// Distributes one accounting period of each CPU among the vCPUs in its queue, by weight.
    fn account(&mut self, state: &SchedState) {
        for cpu in 0..state.cpus.len() {
            self.charge(cpu, state);
            let here: Vec<_> = self.queues.of(cpu).filter(|vcpu| state.may_run(*vcpu)).collect();
            let total: u64 = here.iter().map(|vcpu| self.weight(*vcpu)).sum();
            for vcpu in here {
                let share = ACCOUNTING * self.weight(vcpu) / total.max(1);
                let limit = i64::try_from(self.slice.max(ACCOUNTING)).unwrap_or(i64::MAX);
                // Idle vCPUs do not hoard credit, and overdrafts do not last.
                self.balances[vcpu] = self.balances[vcpu].saturating_add_unsigned(share).clamp(-limit, limit);
            }
        }
        self.used.fill(0);
    }

    fn dispatch(&mut self, cpu: Cpu, due: Ns, state: &SchedState, out: &mut Vec<Decision>) {
        self.charge(cpu, state);
        let limit = ACCOUNTING * Ns::from(self.cap) / 100;
        let (balances, used, cap) = (&self.balances, &self.used, self.cap);
        let is_eligible = |vcpu: Vcpu| {
            state.may_run(vcpu) && (cap == 0 || used.get(vcpu).is_some_and(|used| *used < limit))
        };
        let has_credit = |vcpu: Vcpu| balances.get(vcpu).is_some_and(|credit| *credit > 0);
        let next = self
            .queues
            .pick_next(cpu, |vcpu| is_eligible(vcpu) && has_credit(vcpu))
            .or_else(|| self.queues.pick_next(cpu, is_eligible));
        out.push(match next {
            Some(vcpu) => {
                let left =
                    if cap == 0 { self.slice } else { limit.saturating_sub(used[vcpu]).max(self.rate) };
                Decision::Run { cpu, vcpu, until: state.forward(due, self.slice.min(left)) }
            }
            None => Decision::Idle { cpu, until: state.now + self.rate },
        });
    }

    /// Runs a woken vCPU at once if it has credit and the running vCPU has had its `rate`.
    fn wake(&mut self, vcpu: Vcpu, state: &SchedState, out: &mut Vec<Decision>) {
        let cpu = state.home_of(vcpu);
        let ran = self.since.get(cpu).map(|since| state.now.saturating_sub(*since));
        if ran.is_some_and(|ran| ran >= self.rate) && self.has_credit(vcpu) {
            self.charge(cpu, state);
            out.push(Decision::Run { cpu, vcpu, until: state.now + self.slice });
        }
    }
}

impl Policy for Credit {
    fn needs(&self) -> Needs {
        Needs { guest_hints: self.boosts, doorbell: self.boosts, ..Needs::default() }
    }

    fn decide(&mut self, event: Event, state: &SchedState, out: &mut Vec<Decision>) {
        match event {
            Event::Begin => {
                self.queues = RunQueues::by_home(state);
                self.balances = vec![0; state.vcpus.len()];
                self.used = vec![0; state.vcpus.len()];
                self.since = vec![state.now; state.cpus.len()];
                self.account(state);
                (0..state.cpus.len()).for_each(|cpu| self.dispatch(cpu, state.now, state, out));
                out.push(Decision::Alarm { at: state.now + ACCOUNTING });
            }
            Event::Tick { cpu, due } => self.dispatch(cpu, due, state, out),
            Event::Alarm { due } => {
                self.account(state);
                out.push(Decision::Alarm { at: state.forward(due, ACCOUNTING) });
            }
            Event::Woke { vcpu } if self.boosts && state.may_run(vcpu) && state.cpu_of(vcpu).is_none() => {
                self.wake(vcpu, state, out);
            }
            _ => {}
        }
    }
}
