//! Byte accuracy: each publisher under the same disturbance, and what is found out about its byte.
//!
//! One vCPU runs on one CPU; it leaves the guest, halts and is woken as it goes. A thread takes that CPU from it, fast (some
//! 150 us, each half a millisecond) and slow (some milliseconds), and now and then this monitor holds it. Two views:
//!
//! 1. **The host's** ([`Finding`]): on another CPU the oracle looks, and knows each switch ([`crate::oracle`]).
//! 2. **Moved about** ([`Moves`]): the vCPU is migrated between both CPUs; its switches are counted.
//!
//! They follow each other, since a host of two CPUs has one to look from.

mod end;
mod error;
mod moves;
mod subject;
mod table;

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::cli::{AccuracyArgs, usable_cpus};
use crate::fault_injection::{FaultCounts, Faults};
use crate::oracle::{Edge, Judgement, Sampler, judge};
use end::End;
pub use end::Tally;
pub use error::AccuracyError;
use error::host;
use host::cpu_hog::{Burst, CpuHog, HogLoad};
use host::cpus::Cpus;
use host::error_chain;
use host::facts::HostFacts;
use host::perf::SwitchLog;
use host::thread::Class;
pub use moves::Moves;
use steal_time::publisher::PublisherKind;
use subject::Subject;

/// Pages of the oracle's ring: room for 87,000 switches, more than the disturbance makes in the longest run.
const RING_PAGES: usize = 512;

/// Version of the document. It changes when a field changes its meaning or goes.
pub const SCHEMA: u32 = 1;

/// All rows.
#[derive(Debug, Serialize)]
pub struct Accuracy {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Where.
    pub host: HostFacts,
    /// By publisher.
    pub rows: Vec<Row>,
    /// Whether the user ended it before it was done.
    pub interrupted: bool,
}

/// One publisher. Each view is what was found, or why nothing.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Which.
    pub publisher: PublisherKind,
    /// What was made wrong with it.
    pub faults: Option<Faults>,
    /// The host's view.
    pub finding: Result<Finding, String>,
    /// Moved about.
    pub moves: Result<Moves, String>,
}

/// What the oracle says of one publisher.
#[derive(Debug, Serialize)]
pub struct Finding {
    /// Of the byte.
    pub byte: Judgement,
    /// Of switches and steal.
    #[serde(flatten)]
    pub tally: Tally,
    /// Latencies (ns): 50, 99, 99.9 in 100, and all.
    pub out_latency_ns: [Option<i64>; 4],
    /// The same of returns.
    pub in_latency_ns: [Option<i64>; 4],
}

impl Finding {
    /// What was made wrong on purpose in the same time.
    pub fn faults(&self) -> Option<FaultCounts> {
        self.tally.faults
    }
}

/// Measures each publisher. `begun` is told of each before.
///
/// # Errors
/// [`AccuracyError`] where there is nobody to look. What goes wrong with one publisher is said in its row.
pub fn run(args: &AccuracyArgs, mut begun: impl FnMut(PublisherKind)) -> Result<Accuracy, AccuracyError> {
    let cpus = usable_cpus(args.cpus.as_ref())?;
    let vcpu_cpus = cpus.first(1);
    let looker_cpus =
        cpus.without(&vcpu_cpus).ok_or_else(|| AccuracyError::TooFewCpus(cpus.clone()))?.first(1);
    let cpus = cpus.first(2);
    let mut accuracy =
        Accuracy { schema: SCHEMA, host: HostFacts::probe(), rows: Vec::new(), interrupted: false };
    for publisher in args.publishers.iter().copied() {
        begun(publisher);
        let setting =
            Setting { publisher, cpus: &cpus, vcpu_cpus: &vcpu_cpus, looker_cpus: &looker_cpus, args };
        let Ok(row) = setting.row() else {
            accuracy.interrupted = true;
            break;
        };
        accuracy.rows.push(row);
    }
    Ok(accuracy)
}

/// The user ended it.
struct Interrupted;

/// What was found, or why nothing.
fn said<T>(measured: Result<T, AccuracyError>) -> Result<Result<T, String>, Interrupted> {
    match measured {
        Err(AccuracyError::Interrupted) => Err(Interrupted),
        measured => Ok(measured.map_err(|error| error_chain::one_line(&error))),
    }
}

/// One publisher's measurement.
struct Setting<'a> {
    publisher: PublisherKind,
    /// Both.
    cpus: &'a Cpus,
    vcpu_cpus: &'a Cpus,
    looker_cpus: &'a Cpus,
    args: &'a AccuracyArgs,
}

impl Setting<'_> {
    fn length(&self) -> Duration {
        Duration::from_millis(u64::from(self.args.duration_ms))
    }

    fn row(&self) -> Result<Row, Interrupted> {
        Ok(Row {
            publisher: self.publisher,
            faults: self.args.faults,
            finding: said(self.find())?,
            moves: said(moves::measure(self))?,
        })
    }

    /// Starts the load that preempts the vCPU: fast (150 us of each 500) and slow (4 ms of each 8),
    /// for about the same time.
    ///
    /// A real-time class preempts the vCPU at once; without the privilege they share the CPU.
    fn start_hog(&self) -> Result<CpuHog, AccuracyError> {
        let (us, ms) = (Duration::from_micros, Duration::from_millis);
        let load = HogLoad {
            bursts: vec![
                Burst { busy: us(150), idle: us(350), repeat: 16 },
                Burst { busy: ms(4), idle: ms(4), repeat: 1 },
            ],
            jitter: true,
            class: Class::Fifo(3),
        };
        CpuHog::start(&load, [self.vcpu_cpus.clone()]).map_err(host("start a thread"))
    }

    /// The host's view.
    fn find(&self) -> Result<Finding, AccuracyError> {
        let subject = Subject::start(self, 1, self.vcpu_cpus)?;
        let log = SwitchLog::of_thread(subject.tid, RING_PAGES)?;
        let before = End::take(&subject.guest, subject.tid, &log)?;
        let record = Arc::new(before.record(&subject.guest)?);
        let cpu_hog = self.start_hog()?;
        let looker = Sampler::start(Arc::clone(&record), self.looker_cpus.clone());
        let looker = looker.map_err(host("start a thread"))?;
        subject.hold_now_and_then(self.length());
        let looks = looker.finish();
        drop(cpu_hog);
        let after = End::take(&subject.guest, subject.tid, &log)?;

        let tally = Tally::between(&before, &after, log.lost());
        let byte = judge(&after.switches, &after.descheduled, &looks);
        let quantiles = |edge: &Edge| [0.5, 0.99, 0.999, 1.0].map(|share| edge.quantile_ns(share));
        let finding = Finding {
            out_latency_ns: quantiles(&byte.sched_out),
            in_latency_ns: quantiles(&byte.sched_in),
            byte,
            tally,
        };
        subject.end()?;
        Ok(finding)
    }
}
