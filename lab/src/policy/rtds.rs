//! RTDS: each vCPU has a budget in each period, and each CPU runs the vCPU with the earliest
//! deadline.
//!
//! The deadline is the end of the period. The default `budget` is an equal share of `period`. When
//! the budgets of all vCPUs of a CPU are exhausted, the CPU stays idle, or with `extra=on` runs
//! them in turn. The time that a vCPU does not run is bounded by twice (period - budget).
//!
//! Source: Xen's RTDS (`xen/common/sched/rt.c`), here partitioned: one queue for each CPU.

use super::parameters::{ParameterError, Parameters};
use super::{Cpu, Decision, Event, Ns, Policy, RunQueues, SchedState, Vcpu};

/// Policy `rtds`.
#[derive(Clone, Debug)]
pub struct Rtds {
    period: Ns,
    /// Budget of each vCPU (ns); 0 selects an equal share.
    budget: Ns,
    has_extra: bool,
    queues: RunQueues,
    servers: Vec<Server>,
    since: Vec<Charge>,
}

/// The deferrable server of a vCPU.
#[derive(Clone, Copy, Debug)]
struct Server {
    /// Remaining budget (ns).
    left: Ns,
    /// End of the period (ns).
    deadline: Ns,
}

/// The current slice on a CPU.
#[derive(Clone, Copy, Debug)]
struct Charge {
    /// Its start (ns).
    since: Ns,
    /// Whether it consumes the vCPU's budget.
    is_budgeted: bool,
}

impl Rtds {
    /// Parameters: `period`, `budget` and `extra`.
    ///
    /// # Errors
    /// [`ParameterError`] for a value that cannot be parsed.
    pub fn from_parameters(parameters: &mut Parameters<'_>) -> Result<Self, ParameterError> {
        let period = parameters.slice("period", 10_000_000)?;
        Ok(Self {
            period,
            budget: parameters.time("budget", 0)?.min(period),
            has_extra: parameters.on_off("extra")?,
            queues: RunQueues::default(),
            servers: Vec::new(),
            since: Vec::new(),
        })
    }

    /// Charges the slice on `cpu` that ends now.
    fn charge(&mut self, cpu: Cpu, state: &SchedState) {
        let Some(charge) = self.since.get_mut(cpu) else { return };
        let ended = std::mem::replace(charge, Charge { since: state.now, is_budgeted: false });
        if let Some(server) =
            state.on(cpu).filter(|_| ended.is_budgeted).and_then(|vcpu| self.servers.get_mut(vcpu))
        {
            server.left = server.left.saturating_sub(state.now.saturating_sub(ended.since));
        }
    }

    fn dispatch(&mut self, cpu: Cpu, state: &SchedState, out: &mut Vec<Decision>) {
        let now = state.now;
        self.charge(cpu, state);
        let here: Vec<Vcpu> = self.queues.of(cpu).filter(|vcpu| state.may_run(*vcpu)).collect();
        let mut next_replenishment = now + self.period;
        for vcpu in &here {
            let Some(server) = self.servers.get_mut(*vcpu) else { continue };
            if server.deadline <= now {
                *server = Server { left: self.budget, deadline: state.forward(server.deadline, self.period) };
            }
            next_replenishment = next_replenishment.min(server.deadline);
        }
        let servers = here.iter().filter_map(|vcpu| Some((*vcpu, *self.servers.get(*vcpu)?)));
        let budgeted = servers.filter(|(_, server)| server.left > 0);
        if let Some((vcpu, server)) = budgeted.min_by_key(|(_, server)| server.deadline) {
            self.since[cpu].is_budgeted = true;
            out.push(Decision::Run { cpu, vcpu, until: (now + server.left).min(next_replenishment) });
        } else if let Some(vcpu) = self.queues.pick_next(cpu, |vcpu| self.has_extra && state.may_run(vcpu)) {
            out.push(Decision::Run { cpu, vcpu, until: (now + self.budget).min(next_replenishment) });
        } else {
            out.push(Decision::Idle { cpu, until: next_replenishment });
        }
    }
}

impl Policy for Rtds {
    fn decide(&mut self, event: Event, state: &SchedState, out: &mut Vec<Decision>) {
        match event {
            Event::Begin => {
                self.queues = RunQueues::by_home(state);
                if self.budget == 0 {
                    let longest =
                        (0..state.cpus.len()).map(|cpu| self.queues.of(cpu).count()).max().unwrap_or(1);
                    self.budget = self.period / longest.max(1) as Ns;
                }
                let server = Server { left: self.budget, deadline: state.now + self.period };
                self.servers = vec![server; state.vcpus.len()];
                self.since = vec![Charge { since: state.now, is_budgeted: false }; state.cpus.len()];
                (0..state.cpus.len()).for_each(|cpu| self.dispatch(cpu, state, out));
            }
            Event::Tick { cpu, .. } => self.dispatch(cpu, state, out),
            _ => {}
        }
    }
}
