//! The command line.
//!
//! `vmm` alone makes the demonstration. With anything that says what to run, it runs one guest. Workload options are
//! typed here and travel to the payload as words (see [`protocol::payload::params`]).

mod bench;
mod parse;
mod sched;
mod workload;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use protocol::payload::params::Start;

pub use self::bench::{
    Bench, BenchArgs, ChecksArgs, LocksArgs, PoliciesArgs, PoliciesCli, RoundArgs, SchedBenchArgs, Shape,
    StartupArgs,
};
pub use self::sched::SchedArgs;
pub use self::workload::{LoadArgs, WorkloadArgs};
use crate::fault_injection::Faults;
use crate::guest::LabConfig;
use crate::payload;
use host::cpus::{CpuError, Cpus};
use steal_time::publisher::{PublisherChoice, PublisherKind};
pub use vmm::cli::usable_cpus;
use vmm::cli::{GuestArgs, choice, publisher};
use vmm::guest::GuestConfig;

/// A KVM monitor that owns the steal-time protocol from end to end.
///
/// Without arguments it shows, in about 15 seconds, what a lock keeps of its throughput when CPUs are overcommitted,
/// and waiters know which vCPU is not running.
#[derive(Debug, Parser)]
#[command(name = "vmm-lab", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What to do in place of the demonstration.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The demonstration.
    #[command(flatten)]
    pub demo: DemoArgs,
}

/// Commands other than the demonstration.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run one guest, or several, under a policy or without one
    Run(Box<RunArgs>),
    /// Say what this host can do, and what each missing piece costs
    Doctor,
    /// Name the policies, and what each does
    Policies,
    /// Write the embedded payload to a file
    WritePayload {
        /// The file
        file: PathBuf,
    },
    /// Try the protocol's 31 assertions on this host, publisher by publisher
    Conformance(ConformanceArgs),
    /// Say how true each publisher's byte is on this host, by an oracle that asks none of them
    Accuracy(AccuracyArgs),
    /// Measure one thing, and print its table
    #[command(subcommand)]
    Bench(Bench),
}

/// What is compared where nothing else is said.
const ALL_THAT_PUBLISH: &str = "bpf,bpf-classic,perf,monitor,kernel";

/// `vmm-lab accuracy`.
#[derive(Debug, Args)]
pub struct AccuracyArgs {
    /// Publishers, separated by commas
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = ALL_THAT_PUBLISH, value_parser = publisher)]
    pub publishers: Vec<PublisherKind>,
    /// Make them faulty, to see whether that is found
    #[arg(long, value_name = "drop=SHARE,false_hz=RATE,delay_us=TIME,stick,lose_every=N,seed=N")]
    pub faults: Option<Faults>,
    /// Host CPUs to use, as in 0,2-3: the first for the vCPU, the second to look
    #[arg(long, value_name = "LIST")]
    pub cpus: Option<Cpus>,
    /// How long each is measured
    #[arg(long, value_name = "MS", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(100..=8000))]
    pub duration_ms: u32,
    /// Write all findings to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// `vmm-lab conformance`.
#[derive(Debug, Args)]
pub struct ConformanceArgs {
    /// Publishers, separated by commas
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = ALL_THAT_PUBLISH, value_parser = publisher)]
    pub publishers: Vec<PublisherKind>,
    /// Host CPUs to use, as in 0,2-3
    #[arg(long, value_name = "LIST")]
    pub cpus: Option<Cpus>,
    /// Try QEMU too, with KVM and without
    #[arg(long)]
    pub qemu: bool,
    /// Print the Test Anything Protocol in place of the table
    #[arg(long)]
    pub tap: bool,
    /// Write the verdicts to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// What guests, or the demonstration, are run with.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The guest.
    #[command(flatten)]
    pub guest: GuestArgs,
    /// Make the publisher faulty, in ways that are known and counted
    #[arg(long, value_name = "drop=SHARE,false_hz=RATE,delay_us=TIME,stick,lose_every=N,seed=N")]
    pub faults: Option<Faults>,
    /// Write the results to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Who runs when.
    #[command(flatten)]
    pub sched: SchedArgs,
    /// What our payload does.
    #[command(flatten)]
    pub workload: WorkloadArgs,
}

impl RunArgs {
    /// The guest that these ask for.
    ///
    /// # Errors
    /// [`CpuError`] when it may not use the CPUs.
    pub fn config(&self) -> Result<LabConfig, CpuError> {
        let guest = self.guest.config(payload::BYTES)?;
        let guest = GuestConfig { start: self.workload.start.unwrap_or(Start::Direct), ..guest };
        Ok(LabConfig { faults: self.faults, ..LabConfig::new(guest, self.workload.words()) })
    }
}

/// What the demonstration takes.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Host CPUs that the vCPU threads may use, as in 0,2-3 [default: all that this process may use]
    #[arg(long, value_name = "LIST")]
    pub cpus: Option<Cpus>,
    /// Publisher of the steal-time records: auto, bpf, perf, monitor, kernel or off
    #[arg(long, value_name = "PUBLISHER", default_value = "auto", value_parser = choice)]
    pub publisher: PublisherChoice,
    /// Write the results to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Print nothing
    #[arg(long)]
    pub quiet: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use protocol::payload::params::{Job, Lock, Wait};

    use super::*;

    fn run(args: &[&str]) -> RunArgs {
        match Cli::try_parse_from([&["vmm-lab", "run"], args].concat()).unwrap().command {
            Some(Command::Run(run)) => *run,
            other => panic!("{other:?}"),
        }
    }

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
    fn typed_options_become_words_that_the_payload_reads() {
        let args = run(&[
            "--lock",
            "mutex",
            "--wait",
            "threshold",
            "--section-ns",
            "5",
            "--seed",
            "9",
            "--job",
            "watch",
        ]);
        let (workload, _) =
            protocol::payload::params::parse(&args.workload.words()).map_err(|e| e.to_string()).unwrap();
        assert_eq!((workload.lock, workload.wait, workload.job), (Lock::Mutex, Wait::Threshold, Job::Watch));
        assert_eq!((workload.section_ns, workload.seed), (5, 9));
    }
}
