//! Benches: each answers one question with a table.
//!
//! All benches measure their points through [`crate::runner`]. Each has its `Args` beside its code.

mod accounting;
pub mod checks;
mod locks;
pub mod policies;
mod preempted;
mod sanity;
mod sched;
mod startup;
pub mod switch;
#[cfg(test)]
mod tests;

use std::fmt::Display;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;

pub use self::policies::{PoliciesArgs, PoliciesCli};
use crate::error::{Error, interrupted_status};
use crate::options::parse;
use crate::output::OutputFile;
use crate::runner::Runner;
use crate::table::{TAKEN, ratio};
use host::cpus::{CpuError, Cpus};

/// `vmm-lab bench`: what can be measured.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// How often spinning vCPUs read each other's `preempted` set, on one CPU and on two
    Preempted(BenchArgs),
    /// What each form of the check costs: a call, its caller, and a lock that uses it
    Checks(checks::ChecksArgs),
    /// Throughput that locks retain in each way of waiting when vCPUs share CPUs
    Locks(locks::LocksArgs),
    /// What host policies cost locks, in one wide guest or in several narrow ones
    Policies(PoliciesArgs),
    /// How accurately each mechanism carries out the decisions of a policy
    Sched(sched::SchedBenchArgs),
    /// Whether run time and steal add up to wall time, for each mechanism and publisher
    Accounting(accounting::AccountingArgs),
    /// Time from exec to exit of a guest that resets at once, beside QEMU
    Startup(startup::StartupArgs),
    /// What the BPF program costs a context switch, of vCPU threads and of other tasks
    Switch(BenchArgs),
}

/// Options of all benches.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Host CPUs to use, as in 0,2-3
    #[arg(long, value_name = "LIST")]
    pub cpus: Option<Cpus>,
    /// Write all results to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Hide the progress bar
    #[arg(long)]
    pub quiet: bool,
}

impl BenchArgs {
    fn usable_cpus(&self) -> Result<Cpus, CpuError> {
        vmm::cli::usable_cpus(self.cpus.as_ref())
    }
}

/// Options of benches that measure in rounds.
#[derive(Clone, Copy, Debug, Args)]
pub struct RoundArgs {
    /// Number of rounds, of which the median is shown
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = parse::rounds())]
    pub rounds: u16,
    /// Length of a measured window
    #[arg(long, value_name = "MS", default_value_t = 500)]
    pub duration_ms: u32,
    /// How many times a disturbed point is measured again
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub retries: u16,
}

impl RoundArgs {
    fn runner(self, common: &BenchArgs) -> Runner {
        Runner { rounds: self.rounds, warmup_rounds: 0, retries: self.retries, quiet: common.quiet }
    }
}

/// The results of a bench, which display as its tables.
pub trait BenchReport: Display {
    /// Whether the user ended the bench early. It displays what it measured until then.
    fn was_interrupted(&self) -> bool;

    /// The exit status.
    fn status(&self) -> u8 {
        interrupted_status(self.was_interrupted())
    }
}

/// Printed by a bench without rounds of its own when it was interrupted.
const INTERRUPTED: &str = "Interrupted: not all points were measured";

/// Runs a bench, and writes its results to the requested file.
///
/// # Errors
/// [`Error`] if a point could not be measured or the file could not be written.
pub fn run(bench: BenchCommand) -> Result<Box<dyn BenchReport>, Error> {
    Ok(match bench {
        BenchCommand::Preempted(args) => Box::new(saved(&args, preempted::run)?),
        BenchCommand::Checks(args) => Box::new(saved(&args.common, |_| checks::run(&args))?),
        BenchCommand::Locks(args) => Box::new(saved(&args.common, |_| locks::run(&args))?),
        BenchCommand::Policies(args) => {
            Box::new(saved(&args.common, |_| policies::compare(&args.policies, &args))?)
        }
        BenchCommand::Sched(args) => Box::new(saved(&args.common, |_| sched::run(&args))?),
        BenchCommand::Accounting(args) => Box::new(saved(&args.common, |_| accounting::run(&args))?),
        BenchCommand::Startup(args) => Box::new(startup::run(&args)?),
        BenchCommand::Switch(args) => Box::new(saved(&args, switch::run)?),
    })
}

/// Runs `bench` after checking that the requested file can be written, then writes it.
fn saved<T: Serialize>(
    args: &BenchArgs,
    bench: impl FnOnce(&BenchArgs) -> Result<T, Error>,
) -> Result<T, Error> {
    let json = args.json.as_deref().map(OutputFile::open).transpose()?;
    let bench = bench(args)?;
    if let Some(json) = json {
        json.write(&bench)?;
    }
    Ok(bench)
}

/// Formats the median, minimum and maximum of a ratio; `-` stands for none.
fn ratio_cells(found: Option<crate::runner::Ratio>) -> [String; 3] {
    found.map_or_else(
        || ["-", "-", "-"].map(str::to_owned),
        |found| [found.median, found.min, found.max].map(ratio),
    )
}

/// Formats compared undisturbed rounds over all rounds.
fn rounds_cell(found: Option<crate::runner::Ratio>, all: usize) -> String {
    format!("{}/{all}", found.map_or(0, |found| found.rounds))
}
