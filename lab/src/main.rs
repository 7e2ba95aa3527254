//! The `vmm-lab` binary: parses the command line, runs the command, prints its error.

use std::panic;
use std::process::{self, ExitCode};
use std::time::Instant;

use clap::Parser;
use host::{stdio, termination};
use lab::cli::Cli;
use lab::sched::policy_call;

fn main() -> ExitCode {
    let began = Instant::now();
    abort_on_panic();
    termination::run(began, move || match Cli::try_parse() {
        Ok(cli) => cli.run(began).unwrap_or_else(|error| {
            stdio::eprintln(error.line());
            error.status()
        }),
        Err(error) => vmm::cli::refuse(&error, "vmm-lab"),
    })
}

/// Makes a panic abort the process: other threads would wait for the one that panicked. A policy
/// that panics is the exception. It may be the user's own, and only ends the run.
fn abort_on_panic() {
    let print_panic = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        print_panic(info);
        if !policy_call::is_in_policy() {
            process::abort();
        }
    }));
}
