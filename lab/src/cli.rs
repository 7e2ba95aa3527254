//! The command line: chooses a command. Each command's options stand beside its code.

use std::time::Instant;

use clap::{Parser, Subcommand};

use crate::accuracy::{self, AccuracyArgs};
use crate::bench::{self, BenchCommand};
use crate::conformance::{self, ConformanceArgs};
use crate::demo::{self, DemoArgs};
use crate::doctor;
use crate::error::Error;
use crate::payload::{self, WritePayloadArgs};
use crate::policy::catalogue::Catalogue;
use crate::print::print;
use crate::run::{self, RunArgs};

/// The laboratory for paravirtual steal time: guests under policies, benches, tests of publishers.
///
/// Without a command it runs the demonstration. In about 15 seconds that shows how much of its
/// throughput a lock retains when four vCPUs share a CPU, and waiters can see which vCPU is
/// preempted.
#[derive(Debug, Parser)]
#[command(name = "vmm-lab", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// The command; without one, the demonstration.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Options of the demonstration.
    #[command(flatten)]
    pub demo: DemoArgs,
}

/// A command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run one guest, or several under a policy
    Run(Box<RunArgs>),
    /// Measure one thing, and print its table
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Measure how accurate each publisher's preempted is, with an independent oracle
    Accuracy(AccuracyArgs),
    /// Test the protocol's 31 assertions on this host, for each publisher
    Conformance(ConformanceArgs),
    /// List the policies and their parameters
    Policies,
    /// Report what this host can do, and what each missing piece costs
    Doctor,
    /// Write the embedded payload to a file
    WritePayload(WritePayloadArgs),
}

impl Cli {
    /// Runs the command and returns the exit status. `began` is the start of the process.
    ///
    /// # Errors
    /// [`Error`].
    pub fn run(self, began: Instant) -> Result<u8, Error> {
        match self.command {
            None => demo::command(&self.demo),
            Some(Command::Run(args)) => run::command(&args, began),
            Some(Command::Bench(command)) => {
                let report = bench::run(command)?;
                print(&report)?;
                Ok(report.status())
            }
            Some(Command::Accuracy(args)) => accuracy::command(&args),
            Some(Command::Conformance(args)) => conformance::command(&args),
            Some(Command::Policies) => print(&Catalogue).map(|()| 0),
            Some(Command::Doctor) => doctor::command(),
            Some(Command::WritePayload(args)) => payload::command(&args),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_command_is_the_demonstration_and_takes_its_options_only() {
        assert!(Cli::try_parse_from(["vmm-lab"]).unwrap().command.is_none());
        let args = ["vmm-lab", "--json", "x", "--cpus", "0", "--publisher", "off", "--quiet"];
        assert!(Cli::try_parse_from(args).unwrap().command.is_none());
        for args in [["--vcpus", "1"], ["--lock", "tas"], ["--payload", "x"], ["--seed", "1"]] {
            assert!(Cli::try_parse_from([&["vmm-lab"][..], &args].concat()).is_err(), "{args:?}");
        }
    }

    #[test]
    fn workload_options_of_run_reach_the_guest_s_configuration() {
        let args = ["vmm-lab", "run", "--lock", "mutex", "--check-every", "16", "--start", "sipi"];
        let Some(Command::Run(run)) = Cli::try_parse_from(args).unwrap().command else { panic!("{args:?}") };
        let config = run.config().unwrap();
        assert_eq!(config.options, "lock=mutex check_every=16");
        assert_eq!(config.guest.start, protocol::payload::params::Start::Sipi);
    }
}
