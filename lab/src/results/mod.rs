//! Results: one run, as one document.
//!
//! Everything that is ever printed of a run is rendered from its [`RunResult`]; the JSON document is the same thing.
//! Times are in ns; shares are of the CPUs that the vCPU threads may use, over the window.

mod checks;
mod lock;
mod quantiles;
mod sched;
mod statistics;
mod times;
mod window;

use std::fmt::{Display, Write as _};
use std::sync::atomic::Ordering;

use protocol::payload::conformance::{Assertion, Finding};
use protocol::payload::params::Workload;
use protocol::payload::report::{Crash as CrashReport, Report, VECTOR_PANIC};
use serde::{Serialize, Serializer};

use crate::fault_injection::{FaultCounts, Faults};
use crate::guest::{LabConfig, LabRun, VcpuRun};
use host::facts::HostFacts;
use steal_time::publisher::{Counts, PublisherKind};
use vmm::boot::Entry;
use vmm::guest::PayloadSource;
use vmm::supervise::Outcome;
use vmm::timings::Mark;
use vmm::vcpu::ExitCounts;

pub use checks::CheckFigures;
pub use lock::{LockFigures, Shares};
pub use quantiles::Quantiles;
pub use sched::{Drift, Fact, Refused, SchedFigures};
use statistics::read;
pub use times::Times;
pub use window::{ByteFigures, HostFigures, WindowFigures};

/// Version of the document. It changes when a field changes its meaning or goes.
pub const SCHEMA: u32 = 2;

/// One run.
#[derive(Clone, Debug, Serialize)]
pub struct RunResult {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Where.
    pub host: HostFacts,
    /// What ran.
    pub guest: GuestFacts,
    /// Who published.
    pub publisher: PublisherFacts,
    /// What our payload was asked to do; `None` for a foreign one.
    #[serde(serialize_with = "words_as_map")]
    pub workload: Option<Workload>,
    /// How it ended.
    pub outcome: OutcomeFacts,
    /// When the monitor's clock for the marks below began, by the host's monotonic clock.
    pub began_monotonic_ns: u64,
    /// Where the time of the monitor went.
    pub timings: Vec<Mark>,
    /// What happened while the window was open, if it opened and closed.
    pub window: Option<WindowFigures>,
    /// What [`protocol::payload::params::Job::Conformance`] judged, in the assertions' order.
    pub findings: Vec<FindingFigures>,
    /// Each vCPU, over the whole run.
    pub vcpus: Vec<VcpuFigures>,
    /// Port bytes read that nobody answers for.
    pub unclaimed_reads: u64,
    /// Port bytes written that nobody answers for.
    pub unclaimed_writes: u64,
}

/// The guest, as results name it.
#[derive(Clone, Debug, Serialize)]
pub struct GuestFacts {
    /// Its payload: `embedded`, or the file.
    pub payload: String,
    /// How it was entered: `direct`, `pvh` or `long`.
    pub entry: &'static str,
    /// Its vCPUs.
    pub vcpus: usize,
    /// Its memory.
    pub memory_mib: u64,
    /// Host CPUs that the vCPU threads may use.
    pub cpus: host::cpus::Cpus,
}

/// The publisher, as results name it.
#[derive(Clone, Debug, Serialize)]
pub struct PublisherFacts {
    /// Which.
    pub kind: PublisherKind,
    /// What was asked for.
    pub asked: String,
    /// Why this one.
    pub why: String,
    /// What was made wrong with it on purpose.
    pub faults: Option<Faults>,
    /// What it cannot see or do here, and how that could be had.
    pub limits: Vec<String>,
}

/// How a run ended.
#[derive(Clone, Debug, Serialize)]
pub struct OutcomeFacts {
    /// `reset`, `exit`, `crash`, `timed_out`, `interrupted` or `steering_ended`.
    pub kind: &'static str,
    /// The exit status that tells of it.
    pub status: u8,
    /// What crashed where, in one line.
    pub crash: Option<String>,
    /// The registers of a vCPU that KVM gave up on.
    pub registers: Option<String>,
}

/// What the payload found of an assertion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FindingFigures {
    /// The assertion's number, [`Assertion::number`].
    pub number: u8,
    /// Its name.
    pub assertion: &'static str,
    /// How often it held; 0 where it is broken.
    pub held: u64,
    /// The line of the payload's source that found it broken.
    pub broken_at: Option<u32>,
}

/// One vCPU, over the whole run.
#[derive(Clone, Debug, Serialize)]
pub struct VcpuFigures {
    /// Its id.
    pub id: u8,
    /// Its exits.
    pub exits: ExitCounts,
    /// CPU time of its thread.
    pub run_ns: u64,
    /// Time that its thread wanted to run and could not.
    pub run_delay_ns: u64,
    /// Times that the host took its thread off its CPU.
    pub preemptions: u64,
    /// Writes to the doorbell after which another vCPU ran in its place.
    pub directed_yields: u64,
    /// What the publisher counted.
    pub publication: Option<Counts>,
    /// The faults that were injected into it.
    pub faults: Option<FaultCounts>,
    /// Acquisitions in the window.
    pub acquisitions: u64,
}

impl RunResult {
    /// The document of a run.
    pub fn new(host: HostFacts, config: &LabConfig, run: &LabRun) -> Self {
        let report = run.report.as_deref();
        let monitor = &run.monitor;
        let figures = |VcpuRun { id, stats: remains, directed_yields, faults, .. }: &VcpuRun| {
            let vcpu = report.and_then(|report| report.vcpus.get(id.index()));
            VcpuFigures {
                id: id.apic_id(),
                exits: remains.exits,
                run_ns: remains.account.run_ns,
                run_delay_ns: remains.account.run_delay_ns,
                preemptions: remains.preemptions,
                directed_yields: *directed_yields,
                publication: remains.counts,
                faults: *faults,
                acquisitions: vcpu.map_or(0, |vcpu| read(&vcpu.acquisitions)),
            }
        };
        Self {
            schema: SCHEMA,
            host,
            guest: GuestFacts {
                payload: match &config.guest.payload {
                    PayloadSource::Embedded(_) => "embedded".to_owned(),
                    PayloadSource::File { path, .. } => path.display().to_string(),
                },
                entry: match monitor.entry {
                    Entry::Direct(_) => "direct",
                    Entry::Pvh(_) => "pvh",
                    Entry::Long(_) => "long",
                },
                vcpus: config.guest.vcpus,
                memory_mib: config.guest.memory_mib,
                cpus: config.guest.cpus.clone(),
            },
            publisher: PublisherFacts {
                kind: monitor.publisher,
                asked: config.guest.publisher.to_string(),
                why: monitor.publisher_why.clone(),
                faults: config.faults,
                limits: monitor.publisher_limits.clone(),
            },
            workload: run.workload,
            outcome: OutcomeFacts::new(&monitor.outcome, report),
            began_monotonic_ns: u64::try_from(monitor.timings.began_monotonic().as_nanos())
                .unwrap_or(u64::MAX),
            timings: monitor.timings.marks().to_vec(),
            window: report.zip(run.workload).zip(run.window.as_ref()).map(|((report, workload), window)| {
                WindowFigures::new(report, workload, window, &config.guest)
            }),
            findings: report.map(findings).unwrap_or_default(),
            vcpus: run.vcpus.iter().map(figures).collect(),
            unclaimed_reads: monitor.unclaimed.reads,
            unclaimed_writes: monitor.unclaimed.writes,
        }
    }
}

impl RunResult {
    /// What the payload found of `assertion`, if it tried it.
    pub fn finding(&self, assertion: Assertion) -> Option<&FindingFigures> {
        self.findings.iter().find(|finding| finding.number == assertion.number())
    }
}

impl OutcomeFacts {
    /// Why the run ended before the guest would have ended it, if it did.
    pub fn ended_early(&self) -> Option<&'static str> {
        match self.kind {
            "timed_out" => Some("the time was over"),
            "interrupted" => Some("interrupted"),
            "steering_ended" => Some("its vCPUs could not be steered any longer"),
            _ => None,
        }
    }

    /// How a run ended, with what the payload says of it.
    pub fn new(outcome: &Outcome, report: Option<&Report>) -> Self {
        let kind = match outcome {
            Outcome::Reset => "reset",
            Outcome::Exit(_) => "exit",
            Outcome::Crash { .. } => "crash",
            Outcome::TimedOut => "timed_out",
            Outcome::Interrupted => "interrupted",
            Outcome::Stopped => "steering_ended",
        };
        let (crash, registers) = match outcome {
            Outcome::Crash { vcpu, crash } => (
                Some(format!("vCPU {vcpu}: {}", crash.reason)),
                crash.registers.as_ref().map(ToString::to_string),
            ),
            _ => (report.and_then(|report| describe_crash(&report.header.crash)), None),
        };
        Self { kind, status: outcome.status(), crash, registers }
    }

    /// In a few words.
    pub fn in_short(&self) -> &str {
        self.crash.as_deref().unwrap_or(self.kind)
    }
}

/// The crash that the payload reports, if it does.
fn describe_crash(crash: &CrashReport) -> Option<String> {
    // 2: the fields are complete.
    if crash.state.load(Ordering::Acquire) != 2 {
        return None;
    }
    let vcpu = crash.vcpu.load(Ordering::Relaxed);
    let vector = crash.vector.load(Ordering::Relaxed);
    if vector == VECTOR_PANIC {
        return Some(format!("vCPU {vcpu}: panic at line {}", crash.line.load(Ordering::Relaxed)));
    }
    let (rip, error) = (read(&crash.rip), read(&crash.error));
    let mut text = format!("vCPU {vcpu}: exception {vector} at rip {rip:#x}, error code {error:#x}");
    if vector == 14 {
        let _ = write!(text, ", address {:#x}", read(&crash.address));
    }
    Some(text)
}

fn findings(report: &Report) -> Vec<FindingFigures> {
    let judged = |assertion: &Assertion| {
        let (held, broken_at) = match report.header.findings.of(*assertion)? {
            Finding::Held(times) => (times, None),
            Finding::Broken(line) => (0, Some(line)),
        };
        Some(FindingFigures { number: assertion.number(), assertion: assertion.name(), held, broken_at })
    };
    Assertion::ALL.iter().filter_map(judged).collect()
}

/// A workload's words, `key=value`, as a map.
#[expect(clippy::ref_option, reason = "serde hands over the field")]
fn words_as_map<S: Serializer>(workload: &Option<Workload>, serializer: S) -> Result<S::Ok, S::Error> {
    let Some(workload) = workload else { return serializer.serialize_none() };
    let words = workload.to_string();
    serializer.collect_map(words.split(' ').filter_map(|word| word.split_once('=')))
}

/// Whatever has a word, as that word.
///
/// # Errors
/// The serializer's.
pub fn as_word<T: Display, S: Serializer>(item: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(item)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crash_is_told_only_when_it_is_complete() {
        // A megabyte, which is not for a test's stack.
        static REPORT: Report = Report::new();
        let crash = &REPORT.header.crash;
        crash.vector.store(6, Ordering::Relaxed);
        crash.vcpu.store(2, Ordering::Relaxed);
        crash.rip.store(0x40_0123, Ordering::Relaxed);
        crash.state.store(1, Ordering::Relaxed);
        assert_eq!(describe_crash(crash), None);
        crash.state.store(2, Ordering::Relaxed);
        assert_eq!(describe_crash(crash).unwrap(), "vCPU 2: exception 6 at rip 0x400123, error code 0x0");
        crash.vector.store(14, Ordering::Relaxed);
        crash.address.store(0x4_0000_0000, Ordering::Relaxed);
        assert!(describe_crash(crash).unwrap().ends_with(", address 0x400000000"));
    }
}
