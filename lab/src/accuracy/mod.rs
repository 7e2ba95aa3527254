//! Accuracy: how closely each publisher's `preempted` and `steal` follow what the host really did.
//!
//! One vCPU runs on one CPU. It spins, exits to the monitor, halts and is woken. Another thread
//! takes that CPU, for some 150 us twice per millisecond and for some milliseconds at a time, and
//! the monitor deschedules the vCPU. Each publisher is measured twice, under the same load:
//!
//! 1. **By the oracle** ([`OracleReport`]): a thread on another CPU samples the byte, and perf
//!    records each switch ([`crate::oracle`]).
//! 2. **Under migration** ([`Migration`]): the vCPU's thread moves between both CPUs, and its
//!    switches are counted.
//!
//! A measurement from which other tasks or an outer hypervisor took CPU time is repeated, and then
//! `disturbed`.
//!
//! The two follow each other, because a host of two CPUs has only one to sample from.

mod counts;
mod migration;
mod table;
mod test_guest;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use crate::error::{Error, interrupted_status};
use crate::fault_injection::Faults;
use crate::guest::RunError;
use crate::oracle::{Edge, Judgement, Sampler, judge};
use crate::output::OutputFile;
use crate::print::print;
use crate::publisher::announce_refused_bpf;
use crate::runner::{Measurement, RETRIES, undisturbed};
pub use counts::ObservedCounts;
use counts::Snapshot;
use host::cpu_hog::{Burst, CpuHog, HogLoad};
use host::cpus::Cpus;
use host::disturbance::{Disturbance, Verdict, Watch};
use host::facts::HostFacts;
use host::perf::SwitchLog;
use host::thread::Class;
use host::{stdio, termination};
pub use migration::Migration;
use steal_time::publisher::PublisherKind;
use test_guest::TestGuest;
use vmm::cli::{publisher, usable_cpus};
use vmm::vm::machine;

/// Pages of perf's ring: room for 87,000 switches, more than the longest measurement makes.
const RING_PAGES: usize = 512;

/// Version of the JSON document. It changes when a field changes its meaning or goes.
pub const SCHEMA: u32 = 2;

/// Options of `vmm-lab accuracy`.
#[derive(Debug, Args)]
pub struct AccuracyArgs {
    /// Publishers, separated by commas
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "bpf,bpf-classic,perf,monitor,kernel", value_parser = publisher)]
    pub publishers: Vec<PublisherKind>,
    /// Inject these faults into publication, to see whether the oracle finds them
    #[arg(long, value_name = "drop=SHARE,false_hz=RATE,delay_us=TIME,stick,lose_every=N,seed=N")]
    pub faults: Option<Faults>,
    /// Host CPUs to use, as in 0,2-3: the first for the vCPU, the second for the oracle
    #[arg(long, value_name = "LIST")]
    pub cpus: Option<Cpus>,
    /// Length of each measurement
    #[arg(long, value_name = "MS", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(100..=8000))]
    pub duration_ms: u32,
    /// Write all results to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// The accuracy of all publishers.
#[derive(Debug, Serialize)]
pub struct Accuracy {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The host.
    pub host: HostFacts,
    /// One row for each publisher.
    pub rows: Vec<Row>,
    /// Whether Ctrl-C ended it early.
    pub interrupted: bool,
}

/// The accuracy of one publisher: what was measured, or why it could not be.
#[derive(Debug, Serialize)]
pub struct Row {
    /// The publisher.
    pub publisher: PublisherKind,
    /// Faults to inject.
    pub faults: Option<Faults>,
    /// The oracle's report.
    pub oracle: Result<OracleReport, String>,
    /// Counts under migration.
    pub migration: Result<Migration, String>,
}

/// What the oracle found about one publisher.
#[derive(Debug, Serialize)]
pub struct OracleReport {
    /// Whether the figures count.
    pub verdict: Verdict,
    /// The CPU time that others took.
    pub disturbance: Disturbance,
    /// Errors of the byte.
    pub preempted: Judgement,
    /// Counts of switches and steal.
    #[serde(flatten)]
    pub counts: ObservedCounts,
    /// Latencies (ns) from preemption to the set byte: p50, p99, p99.9 and the longest.
    pub out_latency_ns: [Option<i64>; 4],
    /// Latencies (ns) from switch-in to the cleared byte, likewise.
    pub in_latency_ns: [Option<i64>; 4],
}

impl Measurement for OracleReport {
    fn disturbance(&self) -> Disturbance {
        self.disturbance
    }
}

/// Measures, prints and writes the accuracy of each publisher, and returns the exit status.
///
/// # Errors
/// [`Error`].
pub fn command(args: &AccuracyArgs) -> Result<u8, Error> {
    let json = args.json.as_deref().map(OutputFile::open).transpose()?;
    if args.publishers.contains(&PublisherKind::Bpf) {
        announce_refused_bpf();
    }
    let accuracy = run(args, |publisher| stdio::eprintln(format_args!("Measuring {publisher} ...")))?;
    if let Some(json) = json {
        json.write(&accuracy)?;
    }
    print(&accuracy)?;
    if accuracy.interrupted {
        print(&"Interrupted: not all publishers were measured\n")?;
    }
    Ok(interrupted_status(accuracy.interrupted))
}

/// Measures each publisher. `begin` is called before each.
///
/// # Errors
/// [`Error::NoOracleCpu`], [`Error::Cpus`], and that `/dev/kvm` cannot be used. Errors of one
/// publisher go into its row.
pub fn run(args: &AccuracyArgs, mut begin: impl FnMut(PublisherKind)) -> Result<Accuracy, Error> {
    machine::open_kvm().map_err(RunError::from)?;
    let cpus = usable_cpus(args.cpus.as_ref())?;
    let vcpu_cpus = cpus.first(1);
    let sampler_cpus = cpus.without(&vcpu_cpus).ok_or_else(|| Error::NoOracleCpu(cpus.clone()))?.first(1);
    let cpus = cpus.first(2);
    let mut accuracy =
        Accuracy { schema: SCHEMA, host: HostFacts::probe(), rows: Vec::new(), interrupted: false };
    for publisher in args.publishers.iter().copied() {
        if termination::requested().is_some() {
            accuracy.interrupted = true;
            break;
        }
        begin(publisher);
        let setup =
            Setup { publisher, cpus: &cpus, vcpu_cpus: &vcpu_cpus, sampler_cpus: &sampler_cpus, args };
        let Ok(row) = setup.row() else {
            accuracy.interrupted = true;
            break;
        };
        accuracy.rows.push(row);
    }
    Ok(accuracy)
}

/// A signal ended the measurement.
struct Interrupted;

/// Turns an error of one publisher into text for its row.
fn or_reason<T>(measured: Result<T, Error>) -> Result<Result<T, String>, Interrupted> {
    match measured {
        Err(error) if error.is_interrupted() => Err(Interrupted),
        measured => Ok(measured.map_err(|error| error.line())),
    }
}

/// One publisher, and the CPUs that it is measured on.
struct Setup<'a> {
    publisher: PublisherKind,
    /// Both CPUs.
    cpus: &'a Cpus,
    vcpu_cpus: &'a Cpus,
    sampler_cpus: &'a Cpus,
    args: &'a AccuracyArgs,
}

impl Setup<'_> {
    fn duration(&self) -> Duration {
        Duration::from_millis(u64::from(self.args.duration_ms))
    }

    fn row(&self) -> Result<Row, Interrupted> {
        Ok(Row {
            publisher: self.publisher,
            faults: self.args.faults,
            oracle: or_reason(undisturbed(RETRIES, || self.judge()))?,
            migration: or_reason(undisturbed(RETRIES, || migration::measure(self)))?,
        })
    }

    /// Starts the thread that preempts the vCPU: for 150 us of each 500, and for 4 ms of each 8,
    /// for about the same time each.
    ///
    /// A real-time class preempts the vCPU at once. Without the privilege the two share the CPU.
    fn start_cpu_hog(&self) -> Result<CpuHog, Error> {
        let (us, ms) = (Duration::from_micros, Duration::from_millis);
        let load = HogLoad {
            bursts: vec![
                Burst { busy: us(150), idle: us(350), repeat: 16 },
                Burst { busy: ms(4), idle: ms(4), repeat: 1 },
            ],
            jitter: true,
            class: Class::Fifo(3),
        };
        CpuHog::start(&load, [self.vcpu_cpus.clone()]).map_err(Error::host("start the thread of the CPU hog"))
    }

    /// Lets the oracle judge the publisher.
    fn judge(&self) -> Result<OracleReport, Error> {
        let test = TestGuest::start(self, self.vcpu_cpus)?;
        let log = SwitchLog::of_thread(test.tid, RING_PAGES)?;
        let before = Snapshot::take(&test.guest, test.tid, &log)?;
        let record = Arc::new(before.record(&test.guest)?);
        let watch = Watch::start(self.cpus.clone());
        let cpu_hog = self.start_cpu_hog()?;
        let sampler = Sampler::start(Arc::clone(&record), self.sampler_cpus.clone());
        let sampler = sampler.map_err(Error::host("start the thread of the oracle"))?;
        test.deschedule_repeatedly(self.duration())?;
        let samples = sampler.finish();
        drop(cpu_hog);
        let disturbance = watch.disturbance();
        let after = Snapshot::take(&test.guest, test.tid, &log)?;

        let mut counts = ObservedCounts::between(&before, &after, log.lost());
        counts.expect_within(&after.switches, samples.from_ns..samples.to_ns);
        let preempted = judge(&after.switches, &after.descheduled, &samples);
        let quantiles = |edge: &Edge| [0.5, 0.99, 0.999, 1.0].map(|share| edge.quantile_ns(share));
        let report = OracleReport {
            verdict: counts.verdict(disturbance),
            disturbance,
            out_latency_ns: quantiles(&preempted.sched_out),
            in_latency_ns: quantiles(&preempted.sched_in),
            preempted,
            counts,
        };
        test.end()?;
        Ok(report)
    }
}
