//! `vmm-lab bench`: what can be measured, and how.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use protocol::payload::params::{Check, Lock};

use crate::experiment::WaitMode;
use crate::options::LoadArgs;
use crate::options::parse::{self, Named};
use crate::policy::catalogue::PolicyChoice;
use crate::sched::cpu_hog::Load;
use crate::sched::mechanism::MechanismChoice;
use host::cpus::Cpus;
use steal_time::publisher::PublisherKind;

/// What can be measured.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// How often spinning vCPUs see each other's byte, on one CPU and on two
    Byte(BenchArgs),
    /// What each form of the check costs: a call, its caller, and a lock that uses it
    Checks(ChecksArgs),
    /// What locks give, waiting in one way or another, at so many vCPUs a CPU; median of several rounds
    Locks(LocksArgs),
    /// What host policies cost locks, in one wide guest or in several narrow ones
    Policies(PoliciesArgs),
    /// How far what happens is what a policy has planned, by each mechanism
    Scheduling(SchedBenchArgs),
    /// How long a guest takes from nothing to its end, beside QEMU
    Startup(StartupArgs),
    /// What the BPF program takes of a host context switch, of vCPU threads and of strangers
    Switch(BenchArgs),
}

/// What all benches take.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Host CPUs to use, as in 0,2-3
    #[arg(long, value_name = "LIST")]
    pub cpus: Option<Cpus>,
    /// Write all runs to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// No progress bar
    #[arg(long)]
    pub quiet: bool,
}

/// How a bench of several rounds goes about it.
#[derive(Clone, Copy, Debug, Args)]
pub struct RoundArgs {
    /// Rounds; the median of them is quoted
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = parse::rounds())]
    pub rounds: u16,
    /// Length of a measured window
    #[arg(long, value_name = "MS", default_value_t = 500)]
    pub duration_ms: u32,
    /// Times that a disturbed point is measured again
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub retries: u16,
}

/// `vmm-lab bench checks`.
#[derive(Debug, Args)]
pub struct ChecksArgs {
    /// What all benches take.
    #[command(flatten)]
    pub common: BenchArgs,
    /// How it goes about its rounds.
    #[command(flatten)]
    pub rounds: RoundArgs,
}

/// `vmm-lab bench locks`.
#[derive(Debug, Args)]
pub struct LocksArgs {
    /// What all benches take.
    #[command(flatten)]
    pub common: BenchArgs,
    /// How it goes about its rounds.
    #[command(flatten)]
    pub rounds: RoundArgs,
    /// Locks, separated by commas [default: all]
    #[arg(long = "lock", value_name = "LIST", value_delimiter = ',', value_parser = Named(Lock::ALL, Lock::name))]
    pub kinds: Vec<Lock>,
    /// Ways to wait, separated by commas; each is compared with the first. As in byte/16, the byte may be checked once in so
    /// many turns of the loop
    #[arg(long = "wait", value_name = "LIST", value_delimiter = ',', default_value = "spin,threshold,preempted", value_parser = parse::wait_mode)]
    pub waits: Vec<WaitMode>,
    /// vCPUs for each CPU, separated by commas; each is compared with the first
    #[arg(long = "overcommit", value_name = "LIST", value_delimiter = ',', default_value = "1,4,8", value_parser = clap::value_parser!(u16).range(1..=255))]
    pub loads: Vec<u16>,
    /// Who publishes
    #[arg(long, value_name = "WHO", default_value = "bpf", value_parser = vmm::cli::publisher)]
    pub publisher: PublisherKind,
    /// The form of the check that waiters use
    #[arg(long, value_name = "FORM", value_parser = Named(Check::ALL, Check::name), default_value = "save0")]
    pub check: Check,
    /// What the locks guard, and how they are used.
    #[command(flatten)]
    pub load: LoadArgs,
}

/// How the vCPUs of a load are spread over guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// One guest has all of them.
    Wide,
    /// Several guests have one for each CPU.
    Narrow,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Wide => "wide",
            Self::Narrow => "narrow",
        })
    }
}

/// `vmm-lab bench policies`.
#[derive(Debug, Args)]
pub struct PoliciesArgs {
    /// What all benches take.
    #[command(flatten)]
    pub common: BenchArgs,
    /// How it goes about its rounds.
    #[command(flatten)]
    pub rounds: RoundArgs,
    /// A policy with its parameters (see `vmm-lab policies`); may be given again. Each is compared with the first
    #[arg(long = "policy", value_name = "POLICY", value_parser = parse::policy, default_values = ["rr", "host", "deferral", "yield:target=next"])]
    pub policies: Vec<PolicyChoice>,
    /// How they are carried out: auto, class or deschedule
    #[arg(long, value_name = "HOW", default_value = "auto", value_parser = parse::mechanism)]
    pub mechanism: MechanismChoice,
    /// Locks, separated by commas
    #[arg(long = "lock", value_name = "LIST", value_delimiter = ',', value_parser = Named(Lock::ALL, Lock::name), default_value = "tas,ticket,mcs,mutex")]
    pub kinds: Vec<Lock>,
    /// The way to wait, but for policies that have waiters name whom they wait for
    #[arg(long, value_name = "MODE", default_value = "spin", value_parser = parse::wait_mode)]
    pub wait: WaitMode,
    /// vCPUs for each CPU, separated by commas; each is compared with the first
    #[arg(long = "overcommit", value_name = "LIST", value_delimiter = ',', default_value = "1,2,4", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub loads: Vec<u16>,
    /// One wide guest, several narrow ones, or both in turn, separated by commas
    #[arg(long = "shape", value_name = "LIST", value_delimiter = ',', default_value = "wide")]
    pub shapes: Vec<Shape>,
    /// Who publishes
    #[arg(long, value_name = "WHO", default_value = "bpf", value_parser = vmm::cli::publisher)]
    pub publisher: PublisherKind,
    /// End a run where a policy has not let a vCPU run for so long
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = vmm::cli::seconds)]
    pub starvation: Duration,
    /// Load the CPUs beside the guests, as in duty=50%,burst=10ms
    #[arg(long, value_name = "LOAD")]
    pub cpu_hog: Option<Load>,
    /// What the locks guard, and how they are used.
    #[command(flatten)]
    pub load: LoadArgs,
}

/// A command line of `vmm-lab bench policies` alone: for programs that bring their own policy.
#[derive(Debug, clap::Parser)]
pub struct PoliciesCli {
    /// What is compared, and how.
    #[command(flatten)]
    pub args: PoliciesArgs,
}

/// `vmm-lab bench sched`.
#[derive(Debug, Args)]
pub struct SchedBenchArgs {
    /// What all benches take.
    #[command(flatten)]
    pub common: BenchArgs,
    /// How it goes about its rounds.
    #[command(flatten)]
    pub rounds: RoundArgs,
    /// Lengths of a turn, separated by commas
    #[arg(long = "slice-ms", value_name = "LIST", value_delimiter = ',', default_value = "1,3,10", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub quanta: Vec<u32>,
    /// vCPUs for each CPU, separated by commas
    #[arg(long = "overcommit", value_name = "LIST", value_delimiter = ',', default_value = "2", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub loads: Vec<u16>,
    /// Who publishes
    #[arg(long, value_name = "WHO", default_value = "off", value_parser = vmm::cli::publisher)]
    pub publisher: PublisherKind,
    /// Load the CPUs beside the guest, as in duty=50%,burst=10ms
    #[arg(long, value_name = "LOAD")]
    pub cpu_hog: Option<Load>,
}

/// `vmm-lab bench startup`.
#[derive(Debug, Args)]
pub struct StartupArgs {
    /// Rounds; the median of them is quoted
    #[arg(long, value_name = "N", default_value_t = 21, value_parser = parse::rounds())]
    pub rounds: u16,
    /// vCPUs
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub vcpus: usize,
}
