//! The `vmm` binary: boots one guest and prints how it ended.

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use host::error_chain;
use vmm::cli::{Cli, GuestArgs};
use vmm::guest::{Guest, RunOutcome};
use vmm::hooks::NoHooks;
use vmm::supervise::Outcome;
use vmm::timings::Timings;

/// Exit status after an error of the host or the payload.
const FAILED: u8 = 1;
/// Exit status after a usage error.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let began = Instant::now();
    match Cli::try_parse() {
        Ok(cli) => ExitCode::from(run(&cli.guest, began)),
        Err(error) => vmm::cli::refuse(&error, "vmm"),
    }
}

fn run(args: &GuestArgs, began: Instant) -> u8 {
    let config = match args.config(&[]) {
        Ok(config) => config,
        Err(error) => return fail(&error, if error.is_usage() { USAGE } else { FAILED }),
    };
    let guest = match Guest::start(&config, Arc::new(NoHooks), io::stdout(), Timings::since(began)) {
        Ok(guest) => guest,
        Err(error) => return fail(&error, if error.is_usage() { USAGE } else { FAILED }),
    };
    if guest.has_terminal() && !args.quiet {
        eprintln!(
            "The terminal belongs to the guest. Ctrl-A x ends the run; Ctrl-A Ctrl-A sends one Ctrl-A."
        );
    }
    match guest.wait() {
        Ok(outcome) => {
            report(args, &outcome);
            outcome.outcome.status()
        }
        Err(error) => fail(&error, FAILED),
    }
}

/// Prints how the run ended.
fn report(args: &GuestArgs, run: &RunOutcome) {
    if let Outcome::Crash { vcpu, crash } = &run.outcome {
        eprintln!("The guest crashed: vCPU {vcpu}: {}", crash.reason);
        if let Some(registers) = &crash.registers {
            eprintln!("{registers}");
        }
    }
    if !args.quiet {
        print(run);
    }
    if args.timings {
        eprint!("{}", run.timings);
    }
}

/// Prints a line to standard output. Ignores a reader that has gone.
fn print(what: &dyn Display) {
    let _ = writeln!(io::stdout().lock(), "{what}");
}

fn fail(error: &dyn std::error::Error, status: u8) -> u8 {
    eprintln!("{}", error_chain::one_line(error));
    status
}
