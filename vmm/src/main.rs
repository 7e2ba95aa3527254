//! The `vmm` binary: boots one guest and prints how it ended.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use host::stdio::Stdout;
use host::{error_chain, stdio, termination};
use vmm::cli::{Cli, GuestArgs};
use vmm::guest::{Guest, RunOutcome};
use vmm::hooks::NoHooks;
use vmm::supervise::Outcome;
use vmm::timings::Timings;

/// Exit status after an error of the host or the payload.
const FAILED: u8 = 1;
/// Exit status after a usage error.
const USAGE: u8 = 2;

/// Printed when a terminal belongs to the guest.
const ESCAPE_HINT: &str =
    "The terminal belongs to the guest. Ctrl-A x ends the run; Ctrl-A Ctrl-A sends one Ctrl-A.";

fn main() -> ExitCode {
    let began = Instant::now();
    termination::run(began, move || match Cli::try_parse() {
        Ok(cli) => run(&cli.guest, began),
        Err(error) => vmm::cli::refuse(&error, "vmm"),
    })
}

fn run(args: &GuestArgs, began: Instant) -> u8 {
    args.set_deadline();
    let config = match args.config(&[]) {
        Ok(config) => config,
        Err(error) => return fail(&error, if error.is_usage() { USAGE } else { FAILED }),
    };
    let timings = Timings::since(began);
    let guest = match Guest::start(&config, Arc::new(NoHooks), Stdout::default(), timings) {
        Ok(guest) => guest,
        Err(error) => return fail(&error, if error.is_usage() { USAGE } else { FAILED }),
    };
    if guest.has_terminal() && !args.quiet {
        stdio::eprintln(ESCAPE_HINT);
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
        stdio::eprintln(format_args!("The guest crashed: vCPU {vcpu}: {}", crash.reason));
        if let Some(registers) = &crash.registers {
            stdio::eprintln(registers);
        }
    }
    if run.console_loss.is_unexpected() {
        stdio::eprintln(&run.console_loss);
    }
    if !args.quiet {
        // The status of the run matters more than a reader that has gone.
        let _ = stdio::print(format_args!("{run}\n"));
    }
    if args.timings {
        stdio::eprint(&run.timings);
    }
}

fn fail(error: &dyn std::error::Error, status: u8) -> u8 {
    stdio::eprintln(error_chain::one_line(error));
    status
}
