//! A policy of your own, beside round robin: on each CPU, of those who wait for a turn, whoever holds a lock comes first.
//!
//! `cargo run --release --example own_policy -- --lock tas,mutex --load 1,4`

use std::process::ExitCode;

use clap::Parser;
use lab::bench::policies;
use lab::cli::PoliciesCli;
use lab::policy::catalogue::PolicyChoice;
use lab::policy::{Cpu, Decision, Event, Lines, Ns, Policy, Scene, Vcpu, Wants};

/// The longest turn (ns).
const TURN: Ns = 3_000_000;

#[derive(Debug, Default)]
struct HolderFirst {
    lines: Lines,
}

impl HolderFirst {
    /// Gives `cpu` to the first of its line who holds a lock; if nobody does, to the first.
    fn give(&mut self, cpu: Cpu, due: Ns, scene: &Scene, out: &mut Vec<Decision>) {
        let can = |vcpu: Vcpu| scene.may_run_on(cpu, vcpu);
        let holds = |vcpu: Vcpu| can(vcpu) && scene.told(vcpu).holds > 0;
        let until = scene.after(due, TURN);
        out.push(match self.lines.next(cpu, holds).or_else(|| self.lines.next(cpu, can)) {
            Some(vcpu) => Decision::Run { cpu, vcpu, until },
            None => Decision::Idle { cpu, until },
        });
    }
}

impl Policy for HolderFirst {
    fn wants(&self) -> Wants {
        Wants { told: true, ..Wants::default() } // have the guest say who holds what
    }

    fn decide(&mut self, event: Event, scene: &Scene, out: &mut Vec<Decision>) {
        match event {
            Event::Begin => {
                self.lines = Lines::by_home(scene);
                (0..scene.cpus.len()).for_each(|cpu| self.give(cpu, scene.now, scene, out));
            }
            Event::Tick { cpu, due } => self.give(cpu, due, scene, out),
            _ => {}
        }
    }
}

fn main() -> ExitCode {
    let own = PolicyChoice::own("holder-first", |_seed| HolderFirst::default());
    let args = PoliciesCli::parse().args;
    let compared = "rr".parse().map(|rr| policies::compare(&[rr, own], &args));
    match compared {
        Ok(Ok(bench)) => print!("{bench}"),
        Ok(Err(error)) => return fail(&error),
        Err(error) => return fail(&error),
    }
    ExitCode::SUCCESS
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("{error}");
    ExitCode::FAILURE
}
