//! Byte quality: each publisher under the same disturbance, and what the oracle says of it.
//!
//! One vCPU spins on one CPU. A thread takes that CPU from it, fast (some 150 us, each half a millisecond) and slow (some
//! milliseconds), and now and then this monitor holds it. On another CPU the oracle looks ([`crate::oracle`]).
//!
//! Three counts of the same switches must agree, or the verdict is `unknown`: perf's records, what the scheduler counts
//! in `status`, and in `schedstat`.

mod disturbance;
mod table;

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use protocol::VcpuId;
use protocol::steal_time::Registration;
use protocol::words::{Job, Workload};
use serde::Serialize;

use crate::causes;
use crate::cli::{QualityArgs, usable_cpus};
use crate::guest::{Guest, GuestConfig, GuestError};
use crate::host::account::ThreadAccount;
use crate::host::cpus::{CpuError, Cpus};
use crate::host::facts::HostFacts;
use crate::host::perf::{PerfError, Switch, SwitchKind, SwitchLog};
use crate::oracle::{Edge, Judgement, Looker, Looks, judge};
use crate::progress::Outcome;
use crate::publisher::faulty::{FaultCounts, Faults};
use crate::publisher::record::GuestRecord;
use crate::publisher::{Counts, PublisherKind};
use crate::timings::Timings;
use crate::vcpu::errand::Look;
use crate::vm::StateError;
use disturbance::Disturbance;

/// Pages of the oracle's ring: room for 87,000 switches, ten times as many as the disturbance makes in the longest run.
const RING_PAGES: usize = 512;

/// How long the guest may take to come up.
const PATIENCE: Duration = Duration::from_secs(20);

/// Between two times that the vCPU is held, and for how long.
const BETWEEN_HOLDS: Duration = Duration::from_millis(9);
const HOLD: Duration = Duration::from_millis(1);

/// Quality could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum QualityError {
    /// The guest could not be run.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// Its state could not be had.
    #[error(transparent)]
    State(#[from] StateError),
    /// The oracle's own witness.
    #[error(transparent)]
    Perf(#[from] PerfError),
    /// The CPUs.
    #[error(transparent)]
    Cpus(#[from] CpuError),
    /// Somebody must look while the vCPU runs.
    #[error(
        "The oracle needs a CPU of its own beside the vCPU's, and may use only CPUs {0} (try another --cpus)"
    )]
    TooFewCpus(Cpus),
    /// A thread or an account.
    #[error("Cannot {what} for the oracle")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The host's reason.
        source: io::Error,
    },
    /// The user ended it.
    #[error("Interrupted")]
    Interrupted,
    /// The guest did not do its part.
    #[error("The guest that was to be watched {0}")]
    Idle(&'static str),
}

fn host(what: &'static str) -> impl FnOnce(io::Error) -> QualityError {
    move |source| QualityError::Host { what, source }
}

/// All rows.
#[derive(Debug, Serialize)]
pub struct Quality {
    /// Where.
    pub host: HostFacts,
    /// By publisher.
    pub rows: Vec<Row>,
    /// Whether the user ended it before it was done.
    pub interrupted: bool,
}

/// One publisher.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Which.
    pub publisher: PublisherKind,
    /// What was made wrong with it.
    pub faults: Option<Faults>,
    /// What the oracle says, or why nothing.
    pub finding: Result<Finding, String>,
}

/// What the oracle says of one publisher.
#[derive(Debug, Serialize)]
pub struct Finding {
    /// Of the byte.
    pub byte: Judgement,
    /// Why this is not to be believed: the oracle has lost something. Empty where it has not.
    pub doubts: Vec<String>,
    /// Preemptions, by perf.
    pub outs: u64,
    /// Switch-ins, by perf.
    pub ins: u64,
    /// What the publisher counted in the same time; `None` where nobody counts.
    pub counted: Option<Counts>,
    /// What was made wrong on purpose in the same time.
    pub faults: Option<FaultCounts>,
    /// Growth of steal in the record (ns).
    pub steal_ns: u64,
    /// What it should have been: run delay and time held (ns).
    pub lost_ns: u64,
    /// Latencies (ns): 50, 99, 99.9 in 100, and all.
    pub out_latency_ns: [Option<i64>; 4],
    /// The same of returns.
    pub in_latency_ns: [Option<i64>; 4],
}

/// Measures each publisher. `begun` is told of each before.
///
/// # Errors
/// [`QualityError`] where there is nobody to look. What goes wrong with one publisher is said in its row.
pub fn run(args: &QualityArgs, mut begun: impl FnMut(PublisherKind)) -> Result<Quality, QualityError> {
    let cpus = usable_cpus(args.cpus.as_ref())?;
    let vcpu_cpus = cpus.first(1);
    let looker_cpus = cpus.without(&vcpu_cpus).ok_or(QualityError::TooFewCpus(cpus))?.first(1);
    let (mut rows, mut interrupted) = (Vec::new(), false);
    for publisher in args.publishers.iter().copied() {
        begun(publisher);
        let setting = Setting { publisher, vcpu_cpus: &vcpu_cpus, looker_cpus: &looker_cpus, args };
        let finding = match setting.measure() {
            Err(QualityError::Interrupted) => {
                interrupted = true;
                break;
            }
            measured => measured.map_err(|error| causes::in_one_line(&error)),
        };
        rows.push(Row { publisher, faults: args.faults, finding });
    }
    Ok(Quality { host: HostFacts::probe(), rows, interrupted })
}

/// One measurement.
struct Setting<'a> {
    publisher: PublisherKind,
    vcpu_cpus: &'a Cpus,
    looker_cpus: &'a Cpus,
    args: &'a QualityArgs,
}

impl Setting<'_> {
    fn measure(&self) -> Result<Finding, QualityError> {
        let length = Duration::from_millis(u64::from(self.args.duration_ms));
        let guest = Guest::start(&self.guest(length), io::sink(), Timings::since(Instant::now()))?;
        if !guest.wait_for_window(PATIENCE) {
            return Err(QualityError::Idle("did not come up"));
        }
        let tid = guest.vm().threads().first().map(|(_, thread)| thread.tid());
        let tid = tid.ok_or(QualityError::Idle("has ended"))?;
        let log = SwitchLog::of_thread(tid, RING_PAGES)?;

        let before = End::take(&guest, tid, &log)?;
        let record = Arc::new(before.record(&guest)?);
        let disturbance = Disturbance::start(self.vcpu_cpus.clone()).map_err(host("start a thread"))?;
        let looker = Looker::start(Arc::clone(&record), self.looker_cpus.clone());
        let looker = looker.map_err(host("start a thread"))?;
        hold_now_and_then(&guest, length);
        let looks = looker.finish();
        drop(disturbance);
        let after = End::take(&guest, tid, &log)?;

        let finding = Finding::new(&before, &after, log.lost(), &looks);
        if let Some(report) = guest.report() {
            report.header.close_now.store(1, Ordering::Relaxed);
        }
        match guest.wait()?.outcome {
            Outcome::Reset => Ok(finding),
            Outcome::Interrupted => Err(QualityError::Interrupted),
            _ => Err(QualityError::Idle("did not end well")),
        }
    }

    fn guest(&self, length: Duration) -> GuestConfig {
        let duration_ms = self.args.duration_ms.saturating_mul(2).saturating_add(60_000);
        let workload = Workload { job: Job::Watch, warmup_ms: 5, duration_ms, ..Workload::DEFAULT };
        let timeout = 2 * length + 2 * PATIENCE;
        let (cpus, words) = (self.vcpu_cpus.clone(), workload.to_string());
        GuestConfig {
            faults: self.args.faults,
            ..GuestConfig::embedded(1, cpus, self.publisher, words, timeout)
        }
    }
}

fn hold_now_and_then(guest: &Guest, length: Duration) {
    let began = Instant::now();
    while began.elapsed() < length {
        thread::sleep(BETWEEN_HOLDS);
        guest.vm().hold(VcpuId::BOOT);
        thread::sleep(HOLD);
        guest.vm().release(VcpuId::BOOT);
    }
}

/// One end of a measurement, taken while the vCPU is at rest.
struct End {
    look: Look,
    account: ThreadAccount,
    steal_ns: u64,
    /// What perf has recorded since the log was opened, or since the end before.
    switches: Vec<Switch>,
}

impl End {
    fn take(guest: &Guest, tid: libc::pid_t, log: &SwitchLog) -> Result<Self, QualityError> {
        let paused = guest.vm().pause().map_err(|_| QualityError::Idle("was paused by somebody else"))?;
        let look = guest.vm().look(&paused).into_iter().next();
        let look = look.ok_or(QualityError::Idle("has ended"));
        let mut switches = Vec::new();
        let counted = ThreadAccount::read_asleep(tid, || {
            log.drain(|switch| switches.push(switch));
            guest.vm().publisher().program_counts(VcpuId::BOOT)
        });
        guest.vm().resume(paused);
        let mut look = look?;
        let (account, program) = counted
            .map_err(host("read the account of a vCPU's thread"))?
            .ok_or(QualityError::Idle("would not rest"))?;
        // What the thread says was true a moment before it fell asleep.
        if let (Some(counts), Some(program)) = (&mut look.counts, program) {
            counts.program = program;
        }
        let steal = look.record.as_ref().and_then(|record| record.first_chunk());
        let steal_ns = steal.copied().map_or(0, u64::from_le_bytes);
        Ok(Self { look, account, steal_ns, switches })
    }

    fn record(&self, guest: &Guest) -> Result<GuestRecord, QualityError> {
        match self.look.msr.map(Registration::from_msr) {
            Some(Ok(Registration::At { gpa })) => GuestRecord::at(guest.vm().machine().ram(), gpa),
            _ => None,
        }
        .ok_or(QualityError::Idle("has no record"))
    }
}

impl Finding {
    fn new(before: &End, after: &End, lost: u64, looks: &Looks) -> Self {
        let count = |kind| after.switches.iter().filter(|switch| switch.kind == kind).count() as u64;
        let (outs, ins, sleeps) =
            (count(SwitchKind::Preempted), count(SwitchKind::In), count(SwitchKind::Slept));
        let grown = after.account.since(before.account);
        let mut doubts = Vec::new();
        let mut doubt = |is_doubtful: bool, why: String| doubts.extend(is_doubtful.then_some(why));
        doubt(lost > 0, format!("perf lost {lost} records"));
        let counted = grown.voluntary_switches + grown.involuntary_switches;
        doubt(outs + sleeps != counted, format!("perf saw {} switches out, status {counted}", outs + sleeps));
        doubt(ins != grown.arrivals, format!("perf saw {ins} switches in, schedstat {}", grown.arrivals));

        let held: u64 = after.look.holds.iter().map(|held| held.parked_ns).sum();
        let held_before: u64 = before.look.holds.iter().map(|held| held.parked_ns).sum();
        let run_delay = after.look.account.since(before.look.account).run_delay_ns;
        let forgotten = after.look.forgotten_ns.saturating_sub(before.look.forgotten_ns);
        let byte = judge(&after.switches, &after.look.holds, looks);
        let counts = after.look.counts.map(|counts| counts.since(before.look.counts.unwrap_or_default()));
        let quantiles = |edge: &Edge| [0.5, 0.99, 0.999, 1.0].map(|share| edge.quantile_ns(share));
        Self {
            out_latency_ns: quantiles(&byte.outs),
            in_latency_ns: quantiles(&byte.ins),
            byte,
            doubts,
            outs,
            ins,
            counted: counts,
            faults: counts.and_then(|counts| counts.faults),
            steal_ns: after.steal_ns.saturating_sub(before.steal_ns),
            lost_ns: (run_delay + held).saturating_sub(held_before + forgotten),
        }
    }
}
