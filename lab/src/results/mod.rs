//! Results: the figures of a run.
//!
//! All output about a run is rendered from its [`RunResult`], and the JSON document is its
//! serialisation. Times are in ns. Shares are of the CPU time of all CPUs that the vCPU threads may
//! use, over the window.

mod checks;
mod lock;
mod outcome;
mod quantiles;
mod sched;
pub(crate) mod statistics;
#[cfg(test)]
pub(crate) mod testing;
mod times;
mod window;

use std::fmt::Display;

use protocol::payload::conformance::{Assertion, Finding};
use protocol::payload::params::Workload;
use protocol::payload::report::Report;
use serde::{Serialize, Serializer};

use crate::fault_injection::{FaultCounts, Faults};
use crate::guest::{LabConfig, LabRun, VcpuRun};
use host::facts::HostFacts;
use steal_time::publisher::{Counts, PublisherKind};
use vmm::boot::Entry;
use vmm::guest::PayloadSource;
use vmm::timings::Mark;
use vmm::vcpu::ExitCounts;

pub use checks::CheckFigures;
pub use lock::{LockFigures, Shares};
pub use outcome::{OutcomeFacts, OutcomeKind};
pub use quantiles::Quantiles;
pub use sched::{Drift, Observed, SchedFigures};
use statistics::read;
pub use times::Times;
pub use window::{HostFigures, PreemptedFigures, VcpuWindowFigures, WindowFigures};

/// Version of the document. It changes when a field changes its meaning or its name, or goes.
pub const SCHEMA: u32 = 4;

/// One run of one guest.
#[derive(Clone, Debug, Serialize)]
pub struct RunResult {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The host.
    pub host: HostFacts,
    /// The guest.
    pub guest: GuestFacts,
    /// The publisher.
    pub publisher: PublisherFacts,
    /// The workload of the embedded payload; `None` for a foreign payload.
    #[serde(serialize_with = "params_as_map")]
    pub workload: Option<Workload>,
    /// How the run ended.
    pub outcome: OutcomeFacts,
    /// Monotonic time of the host that `timings` start from (ns).
    pub began_monotonic_ns: u64,
    /// Milestones of the monitor's start-up and end.
    pub timings: Vec<Mark>,
    /// Figures of the measured window; `None` if it did not open and close.
    pub window: Option<WindowFigures>,
    /// Verdicts of [`protocol::payload::params::Job::Conformance`], in the order of the assertions.
    pub findings: Vec<FindingFigures>,
    /// Each vCPU, over the whole run.
    pub vcpus: Vec<VcpuFigures>,
    /// Bytes read from ports that no device claims.
    pub unclaimed_reads: u64,
    /// Bytes written to ports that no device claims.
    pub unclaimed_writes: u64,
    /// Bytes that the guest sent on COM1 and that standard output did not take.
    pub console_lost: u64,
}

/// What the guest was.
#[derive(Clone, Debug, Serialize)]
pub struct GuestFacts {
    /// The payload: `embedded`, or the path of the file.
    pub payload: String,
    /// The entry point's protocol: `direct`, `pvh` or `long`.
    pub entry: &'static str,
    /// Number of vCPUs.
    pub vcpus: usize,
    /// Memory (MiB).
    pub memory_mib: u64,
    /// Host CPUs that the vCPU threads may use.
    pub cpus: host::cpus::Cpus,
}

/// Which publisher wrote the steal-time records.
#[derive(Clone, Debug, Serialize)]
pub struct PublisherFacts {
    /// The publisher.
    pub kind: PublisherKind,
    /// The publisher that was requested.
    pub requested: String,
    /// Why this one was taken.
    pub why: String,
    /// Faults that were injected into it.
    pub faults: Option<Faults>,
    /// What it cannot observe or do on this host, each with its cure.
    pub limits: Vec<String>,
}

/// The payload's verdict on an assertion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FindingFigures {
    /// [`Assertion::number`].
    pub number: u8,
    /// [`Assertion::name`].
    pub assertion: &'static str,
    /// Number of observations in which it held; 0 if it is broken.
    pub held: u64,
    /// The line of the payload's source that found it broken.
    pub broken_at: Option<u32>,
}

/// One vCPU, over the whole run.
#[derive(Clone, Debug, Serialize)]
pub struct VcpuFigures {
    /// APIC id.
    pub id: u8,
    /// Exits by kind.
    pub exits: ExitCounts,
    /// CPU time of its thread (ns); `None` if the host does not report it.
    pub run_ns: Option<u64>,
    /// Time for which its thread was runnable without a CPU (ns); `None` if the host does not
    /// report it.
    pub run_delay_ns: Option<u64>,
    /// Number of times that the host preempted its thread.
    pub preemptions: u64,
    /// Doorbell writes after which another vCPU ran in its place.
    pub directed_yields: u64,
    /// What the publisher counted.
    pub publication: Option<Counts>,
    /// Faults that were injected into its publication.
    pub faults: Option<FaultCounts>,
    /// Lock acquisitions in the window.
    pub acquisitions: u64,
    /// Its own part of the window; `None` if it did not find the window open, and then closed.
    pub window: Option<VcpuWindowFigures>,
}

impl RunResult {
    /// Collects the figures of `run`.
    pub fn new(host: HostFacts, config: &LabConfig, run: &LabRun) -> Self {
        let report = run.report.as_deref();
        let monitor = &run.monitor;
        let figures = |VcpuRun { id, stats, directed_yields, faults, window, .. }: &VcpuRun| {
            let vcpu = report.and_then(|report| report.vcpus.get(id.index()));
            VcpuFigures {
                id: id.apic_id(),
                exits: stats.exits,
                run_ns: stats.account.map(|account| account.run_ns),
                run_delay_ns: stats.account.map(|account| account.run_delay_ns),
                preemptions: stats.preemptions,
                directed_yields: *directed_yields,
                publication: stats.counts,
                faults: *faults,
                acquisitions: vcpu.map_or(0, |vcpu| read(&vcpu.acquisitions)),
                window: vcpu.zip(*window).map(|(vcpu, window)| VcpuWindowFigures::new(vcpu, window)),
            }
        };
        Self {
            schema: SCHEMA,
            host,
            guest: GuestFacts {
                payload: match &config.guest.payload {
                    PayloadSource::Embedded(_) => "embedded".to_owned(),
                    PayloadSource::File { path, .. } => path.display().to_string(),
                    PayloadSource::Opened(payload) => payload.name(),
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
                requested: config.guest.publisher.to_string(),
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
            console_lost: monitor.console_loss.bytes,
        }
    }
}

impl RunResult {
    /// Run time and steal of all vCPUs as a share of the length of their windows: 1 if all of them
    /// always wanted to run, unless an outer hypervisor took time. `None` if a vCPU has no window.
    pub fn accounted(&self) -> Option<f64> {
        let windows: Option<Vec<_>> = self.vcpus.iter().map(|vcpu| vcpu.window).collect();
        let total = |field: fn(&VcpuWindowFigures) -> u64| windows.iter().flatten().map(field).sum::<u64>();
        let length_ns = total(|window| window.length_ns);
        let accounted_ns = total(|window| window.run_ns).saturating_add(total(|window| window.steal_ns));
        (windows.is_some() && length_ns > 0).then(|| accounted_ns as f64 / length_ns as f64)
    }

    /// The payload's verdict on `assertion`; `None` if it did not judge it.
    pub fn finding(&self, assertion: Assertion) -> Option<&FindingFigures> {
        self.findings.iter().find(|finding| finding.number == assertion.number())
    }
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

/// Serialises a workload's parameters, `key=value`, as a map.
#[expect(clippy::ref_option, reason = "serde passes a reference to the field")]
fn params_as_map<S: Serializer>(workload: &Option<Workload>, serializer: S) -> Result<S::Ok, S::Error> {
    let Some(workload) = workload else { return serializer.serialize_none() };
    let params = workload.to_string();
    serializer.collect_map(params.split(' ').filter_map(|param| param.split_once('=')))
}

/// Serialises `item` as the text that it displays.
///
/// # Errors
/// The serializer's.
pub fn as_word<T: Display, S: Serializer>(item: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(item)
}
