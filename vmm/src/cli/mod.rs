//! The command line.
//!
//! `vmm` alone makes the demonstration. With anything that says what to run, it runs one guest. Workload options are
//! typed here and travel to the payload as words (see [`protocol::words`]).

mod bench;
mod parse;
mod steer;
mod workload;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use protocol::words::Start;

pub use self::bench::{
    Bench, BenchArgs, ChecksArgs, LocksArgs, PoliciesArgs, PoliciesCli, RoundArgs, Shape, StartupArgs,
    SteeringArgs,
};
pub use self::steer::SteerArgs;
pub use self::workload::{LoadArgs, WorkloadArgs};
use crate::fault_injection::Faults;
use crate::guest::{GuestConfig, PayloadSource};
use crate::host::cpus::{CpuError, Cpus};
use crate::lab_guest::LabConfig;
use crate::payload;
use crate::publisher::{Choice, PublisherKind};

/// Memory of a guest, if not said otherwise (MiB).
const DEFAULT_MEMORY_MIB: u64 = 128;

/// A KVM monitor that owns the steal-time protocol from end to end.
///
/// Without arguments it shows, in about 15 seconds, what a lock keeps of its throughput when CPUs are overcommitted,
/// and waiters know which vCPU is not running.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What else to do than run.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// What to run.
    #[command(flatten)]
    pub run: RunArgs,
}

/// Commands other than running one guest or the demonstration.
#[derive(Debug, Subcommand)]
pub enum Command {
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
    Quality(QualityArgs),
    /// Measure one thing, and print its table
    #[command(subcommand)]
    Bench(Bench),
}

/// What is compared where nothing else is said.
const ALL_THAT_PUBLISH: &str = "bpf,bpf-classic,perf,park,kernel";

/// `vmm quality`.
#[derive(Debug, Args)]
pub struct QualityArgs {
    /// Publishers, separated by commas
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = ALL_THAT_PUBLISH, value_parser = parse::publisher)]
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

/// `vmm conformance`.
#[derive(Debug, Args)]
pub struct ConformanceArgs {
    /// Publishers, separated by commas
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = ALL_THAT_PUBLISH, value_parser = parse::publisher)]
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

/// What one guest, or the demonstration, is run with.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Number of vCPUs, 1 to 255
    #[arg(long, value_name = "N")]
    pub vcpus: Option<usize>,
    /// Run this file: an ELF kernel (PVH or 64-bit), or a bzImage [default: the embedded payload]
    #[arg(long, value_name = "FILE")]
    pub payload: Option<PathBuf>,
    /// The payload is a flat binary for 1 MiB
    #[arg(long, requires = "payload")]
    pub flat: bool,
    /// Guest memory [default: 128]
    #[arg(long, value_name = "MIB")]
    pub memory: Option<u64>,
    /// Host CPUs that the vCPU threads may use, as in 0,2-3 [default: all that this process may use]
    #[arg(long, value_name = "LIST")]
    pub cpus: Option<Cpus>,
    /// Who keeps the records true: auto, bpf, perf, park, kernel or off
    #[arg(long, value_name = "WHO", default_value = "auto", value_parser = parse::choice)]
    pub publisher: Choice,
    /// Make the publisher faulty, in ways that are known and counted
    #[arg(long, value_name = "drop=SHARE,false_hz=RATE,delay_us=TIME,stick,lose_every=N,seed=N")]
    pub faults: Option<Faults>,
    /// Kernel command line
    #[arg(long, value_name = "TEXT")]
    pub cmdline: Option<String>,
    /// Initial RAM disk
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Write the results to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Print nothing but what the guest sends on COM1
    #[arg(long)]
    pub quiet: bool,
    /// End the run after this long, with status 4
    #[arg(long, value_name = "SECONDS", value_parser = parse::seconds)]
    pub timeout: Option<Duration>,
    /// Say where the time went
    #[arg(long)]
    pub timings: bool,
    /// Who runs when.
    #[command(flatten)]
    pub steer: SteerArgs,
    /// What our payload does.
    #[command(flatten)]
    pub workload: WorkloadArgs,
}

impl RunArgs {
    /// Whether nothing says what to run: then the demonstration is made.
    pub fn is_demo(&self) -> bool {
        let options = self.workload.words();
        self.vcpus.is_none()
            && self.payload.is_none()
            && self.memory.is_none()
            && self.faults.is_none()
            && self.cmdline.is_none()
            && self.initrd.is_none()
            && self.timeout.is_none()
            && self.workload.start.is_none()
            && !self.timings
            && !self.steer.is_given()
            && options.is_empty()
    }

    /// The guest that these ask for.
    ///
    /// # Errors
    /// [`CpuError`] when it may not use the CPUs.
    pub fn config(&self) -> Result<LabConfig, CpuError> {
        let guest = GuestConfig {
            vcpus: self.vcpus.unwrap_or(1),
            memory_mib: self.memory.unwrap_or(DEFAULT_MEMORY_MIB),
            cpus: usable_cpus(self.cpus.as_ref())?,
            publisher: self.publisher,
            payload: match &self.payload {
                None => PayloadSource::Embedded(payload::BYTES),
                Some(path) => PayloadSource::File { path: path.clone(), flat: self.flat },
            },
            start: self.workload.start.unwrap_or(Start::Direct),
            cmdline: self.cmdline.clone().unwrap_or_default(),
            initrd: self.initrd.clone(),
            stdin: true,
            port_events: Vec::new(),
            timeout: self.timeout,
        };
        Ok(LabConfig { faults: self.faults, ..LabConfig::new(guest, self.workload.words()) })
    }
}

/// The CPUs asked for, if this process may use them; all that it may use, if none were.
///
/// # Errors
/// [`CpuError`].
pub fn usable_cpus(asked: Option<&Cpus>) -> Result<Cpus, CpuError> {
    let allowed = Cpus::allowed()?;
    match asked {
        Some(cpus) => cpus.clone().within(&allowed),
        None => Ok(allowed),
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error;
    use std::io;

    use clap::CommandFactory;
    use protocol::words::{Job, Lock, Wait};

    use super::*;
    use crate::publisher::PublisherError;
    use crate::publisher::bpf::{BpfError, KernelBtfError};

    fn run(args: &[&str]) -> RunArgs {
        Cli::try_parse_from([&["vmm"], args].concat()).unwrap().run
    }

    #[test]
    fn definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn nothing_that_says_what_to_run_is_the_demonstration() {
        assert!(run(&[]).is_demo());
        assert!(run(&["--json", "x", "--cpus", "0", "--publisher", "off", "--quiet"]).is_demo());
        for args in
            [["--vcpus", "1"], ["--lock", "tas"], ["--payload", "x"], ["--start", "sipi"], ["--seed", "1"]]
        {
            assert!(!run(&args).is_demo(), "{args:?}");
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
            protocol::words::parse(&args.workload.words()).map_err(|e| e.to_string()).unwrap();
        assert_eq!((workload.lock, workload.wait, workload.job), (Lock::Mutex, Wait::Threshold, Job::Watch));
        assert_eq!((workload.section_ns, workload.seed), (5, 9));
    }

    #[test]
    fn publishers_that_errors_suggest_can_be_chosen() {
        let refused = || io::Error::from_raw_os_error(libc::EPERM);
        let what = "load the BPF program";
        let errors: [&dyn Error; 8] = [
            &BpfError::KernelBtf(KernelBtfError::Unreadable(refused())),
            &BpfError::KernelBtf(KernelBtfError::Unfit("no task_struct".into())),
            &BpfError::Object("no map".into()),
            &BpfError::NotPermitted { what, source: refused() },
            &BpfError::Verifier { program: "switch".into(), log: String::new(), source: refused() },
            &BpfError::NoThreadPidfd(refused()),
            &PublisherError::KernelLacksStealTime,
            &PublisherError::MsrFilterMissing("KVM_CAP_X86_MSR_FILTER"),
        ];
        for message in errors.map(ToString::to_string) {
            let suggested = message.split("--publisher ").nth(1).expect("a way out is named");
            let name: String =
                suggested.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
            assert!(parse::choice(&name).is_ok(), "{name:?}: {message}");
        }
    }

    #[test]
    fn publishers_and_seconds_that_make_no_sense_are_refused() {
        assert_eq!(parse::choice("bpf"), Ok(Choice::Only(PublisherKind::Bpf)));
        assert!(parse::choice("perfect").is_err());
        assert_eq!(parse::seconds("0.5"), Ok(Duration::from_millis(500)));
        for text in ["0", "-1", "inf", "NaN", "soon", "1e-12", "1e9", "18446744073709551615"] {
            assert!(parse::seconds(text).is_err(), "{text}");
        }
    }
}
