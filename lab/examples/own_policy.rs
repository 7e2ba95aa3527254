//! A policy of your own, compared with round robin: on each CPU, lock holders run first.
//!
//! `src/policy/README.md` explains it.
//!
//! `cargo run --release --example own_policy -- --lock tas,mutex --overcommit 1,4`

use std::process::ExitCode;

use clap::Parser;
use host::stdio;
use lab::bench::PoliciesCli;
use lab::bench::policies;
use lab::policy::catalogue::PolicyChoice;
use lab::policy::{Cpu, Decision, Event, Needs, Ns, Policy, RunQueues, SchedState, Vcpu};

/// Length of a slice (ns).
const SLICE: Ns = 3_000_000;

/// Round robin that prefers lock holders.
#[derive(Debug, Default)]
struct HolderFirst {
    queues: RunQueues,
}

impl HolderFirst {
    /// Assigns `cpu` to the first lock holder of its queue, or else to the first vCPU.
    fn dispatch(&mut self, cpu: Cpu, due: Ns, state: &SchedState, out: &mut Vec<Decision>) {
        let may_run = |vcpu: Vcpu| state.may_run_on(cpu, vcpu);
        let is_holder = |vcpu: Vcpu| may_run(vcpu) && state.hints(vcpu).locks_held > 0;
        let holder = self.queues.pick_next(cpu, is_holder);
        let until = state.forward(due, SLICE);
        out.push(match holder.or_else(|| self.queues.pick_next(cpu, may_run)) {
            Some(vcpu) => Decision::Run { cpu, vcpu, until },
            None => Decision::Idle { cpu, until },
        });
    }
}

impl Policy for HolderFirst {
    fn needs(&self) -> Needs {
        Needs { guest_hints: true, ..Needs::default() } // the guest publishes lock holders
    }

    fn decide(&mut self, event: Event, state: &SchedState, out: &mut Vec<Decision>) {
        match event {
            Event::Begin => {
                self.queues = RunQueues::by_home(state);
                (0..state.cpus.len()).for_each(|cpu| self.dispatch(cpu, state.now, state, out));
            }
            Event::Tick { cpu, due } => self.dispatch(cpu, due, state, out),
            _ => {}
        }
    }
}

fn main() -> ExitCode {
    let own = PolicyChoice::own("holder-first", |_seed| HolderFirst::default());
    let args = PoliciesCli::parse().args;
    let compared = "rr".parse().map(|rr| policies::compare(&[rr, own], &args));
    match compared {
        Ok(Ok(bench)) => {
            if let Err(error) = stdio::print(bench) {
                return fail(&error);
            }
        }
        Ok(Err(error)) => return fail(&error),
        Err(error) => return fail(&error),
    }
    ExitCode::SUCCESS
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    stdio::eprintln(error);
    ExitCode::FAILURE
}
