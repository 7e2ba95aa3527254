//! Benches: one question each, answered by a table that one command prints.

mod byte;
pub mod checks;
mod locks;
pub mod policies;
mod rounds;
mod sanity;
mod sched;
mod startup;
pub mod switch;

use std::fmt::Display;

use serde::Serialize;

use crate::cli::{self, BenchArgs};
use crate::experiment::ExperimentError;
use crate::guest::LabGuestError;
use crate::output::{OutputError, OutputFile};
use crate::session::SessionError;
use host::cpus::CpuError;
use steal_time::bpf::BpfError;

/// A bench could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A guest could not be run.
    #[error(transparent)]
    Guest(#[from] LabGuestError),
    /// A point could not be measured.
    #[error(transparent)]
    Experiment(#[from] ExperimentError),
    /// Guests under a policy could not be run.
    #[error(transparent)]
    Fleet(#[from] SessionError),
    /// They have no figures.
    #[error("Cannot measure a point: {0}")]
    Point(String),
    /// The CPUs.
    #[error(transparent)]
    Cpus(#[from] CpuError),
    /// The file for the results.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The program that is measured.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// What the kernel accounts for.
    #[error("Cannot read the account of a thread (is /proc mounted?)")]
    Account(#[source] std::io::Error),
    /// The embedded payload's code.
    #[error(transparent)]
    Code(#[from] checks::CodeError),
    /// Too few CPUs for what it compares.
    #[error("This bench compares one CPU with two, and may use only CPUs {0} (try another --cpus)")]
    TooFewCpus(host::cpus::Cpus),
    /// Another process, started to be measured, did not do its part.
    #[error("Cannot measure `{command}`: {how}")]
    Process {
        /// The command line.
        command: String,
        /// What happened.
        how: String,
    },
}

/// A bench that was made.
pub trait Bench: Display {
    /// Whether the user ended it before it was done. What it has is printed all the same.
    fn was_interrupted(&self) -> bool {
        false
    }
}

/// Makes a bench.
///
/// # Errors
/// [`BenchError`].
pub fn run(bench: cli::Bench) -> Result<Box<dyn Bench>, BenchError> {
    Ok(match bench {
        cli::Bench::Byte(args) => Box::new(saved(&args, byte::run)?),
        cli::Bench::Checks(args) => Box::new(saved(&args.common, |_| checks::run(&args))?),
        cli::Bench::Locks(args) => Box::new(saved(&args.common, |_| locks::run(&args))?),
        cli::Bench::Policies(args) => {
            Box::new(saved(&args.common, |_| policies::compare(&args.policies, &args))?)
        }
        cli::Bench::Scheduling(args) => Box::new(saved(&args.common, |_| sched::run(&args))?),
        cli::Bench::Startup(args) => Box::new(startup::run(&args)?),
        cli::Bench::Switch(args) => Box::new(saved(&args, switch::run)?),
    })
}

/// Makes a bench, and writes what it gave to the file that was asked for, if it can be written.
fn saved<T: Serialize>(
    args: &BenchArgs,
    bench: impl FnOnce(&BenchArgs) -> Result<T, BenchError>,
) -> Result<T, BenchError> {
    let json = args.json.as_deref().map(OutputFile::at).transpose()?;
    let bench = bench(args)?;
    if let Some(json) = json {
        json.write(&bench)?;
    }
    Ok(bench)
}

/// The middle one, or the mean of the two in the middle.
fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        len if len % 2 == 1 => values.get(middle).copied(),
        _ => Some(f64::midpoint(*values.get(middle - 1)?, *values.get(middle)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_an_even_number_is_between_the_two_in_the_middle() {
        assert_eq!(median([]), None);
        assert_eq!(median([3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }
}
