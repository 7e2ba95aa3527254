//! Benches: one question each, answered by a table that one command prints.

mod byte;
mod retention;
mod startup;

use std::fmt::Display;

use serde::Serialize;

use crate::cli::{self, BenchArgs};
use crate::experiment::ExperimentError;
use crate::guest::GuestError;
use crate::host::cpus::CpuError;
use crate::output::{JsonFile, OutputError};

/// A bench could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A guest could not be run.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// A point could not be measured.
    #[error(transparent)]
    Experiment(#[from] ExperimentError),
    /// The CPUs.
    #[error(transparent)]
    Cpus(#[from] CpuError),
    /// The file for the results.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// Too few CPUs for what it compares.
    #[error("This bench compares one CPU with two, and may use only CPUs {0} (try another --cpus)")]
    TooFewCpus(crate::host::cpus::Cpus),
    /// Another process, started to be measured, did not do its part.
    #[error("Cannot measure `{command}`: {how}")]
    Process {
        /// The command line.
        command: String,
        /// What happened.
        how: String,
    },
}

/// Makes a bench, and gives what is to be printed.
///
/// # Errors
/// [`BenchError`].
pub fn run(bench: cli::Bench) -> Result<Box<dyn Display>, BenchError> {
    Ok(match bench {
        cli::Bench::Byte(args) => Box::new(saved(&args, byte::run(&args))?),
        cli::Bench::Retention(args) => Box::new(saved(&args.common, retention::run(&args))?),
        cli::Bench::Startup(args) => Box::new(startup::run(&args)?),
    })
}

/// Writes what a bench gave to the file that was asked for.
fn saved<T: Serialize>(args: &BenchArgs, bench: Result<T, BenchError>) -> Result<T, BenchError> {
    let bench = bench?;
    if let Some(path) = &args.json {
        JsonFile::at(path)?.write(&bench)?;
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
