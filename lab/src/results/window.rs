//! Figures of the measured window: the host's counts, the lock's figures, samples of `preempted`.

use std::sync::atomic::Ordering;

use protocol::payload::params::{Job, Workload};
use protocol::payload::report::{Report, VcpuReport};
use serde::Serialize;

use super::CheckFigures;
use super::lock::{LockFigures, LockWindow};
use super::statistics::{ns, ratio, read, sum};
use super::times::{Times, histogram};
use crate::window::{OwnWindow, Window};
use host::disturbance::{Disturbance, Verdict};
use host::stats::ThreadStats;
use vmm::guest::GuestConfig;

/// What happened while the window was open.
#[derive(Clone, Debug, Serialize)]
pub struct WindowFigures {
    /// Length by the guest's clock (ns).
    pub length_ns: u64,
    /// The host's counts.
    pub host: HostFigures,
    /// Growth of `steal` over all records, as the guest read it (ns).
    pub guest_steal_ns: u64,
    /// The lock, for [`Job::Contend`].
    pub lock: Option<LockFigures>,
    /// Samples of `preempted`, for [`Job::Watch`] and [`Job::Conformance`].
    pub preempted: Option<PreemptedFigures>,
    /// The cost of each form of the check, and of none, for [`Job::Checks`].
    pub checks: Vec<CheckFigures>,
}

/// What the host counted during a window; `None` for what it does not report.
#[derive(Clone, Debug, Serialize)]
pub struct HostFigures {
    /// Length by the host's clock (ns).
    pub length_ns: u64,
    /// CPU time of the vCPU threads (ns).
    pub run_ns: Option<u64>,
    /// Time for which vCPU threads were runnable without a CPU (ns).
    pub run_delay_ns: Option<u64>,
    /// Involuntary context switches of vCPU threads.
    pub preemptions: Option<u64>,
    /// Voluntary context switches of vCPU threads.
    pub sleeps: Option<u64>,
    /// CPU time that other tasks and an outer hypervisor took, and whether the figures count.
    #[serde(flatten)]
    pub disturbance: Disturbance,
}

/// The window of one vCPU, from the moment at which it found the window open to the one at which it
/// found it closed.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct VcpuWindowFigures {
    /// Length by the host's clock (ns).
    pub length_ns: u64,
    /// CPU time of its thread (ns).
    pub run_ns: u64,
    /// Growth of `steal` in its record, as the guest read it (ns); 0 without a publisher.
    pub steal_ns: u64,
}

impl VcpuWindowFigures {
    /// Evaluates the `window` of the vCPU that left `report`.
    pub(super) fn new(report: &VcpuReport, window: OwnWindow) -> Self {
        let OwnWindow { length_ns, run_ns } = window;
        let steal_ns = read(&report.steal_at_close).saturating_sub(read(&report.steal_at_open));
        Self { length_ns, run_ns, steal_ns }
    }
}

/// Samples of `preempted` by running vCPUs.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct PreemptedFigures {
    /// Samples of the vCPU's own byte.
    pub own_samples: u64,
    /// Those in which it was set.
    pub own_set: u64,
    /// Samples of another vCPU's byte.
    pub other_samples: u64,
    /// Those in which it was set.
    pub other_set: u64,
    /// Time from a vCPU's last sign of life to the first sample that found its byte set: median
    /// (ns); 0 if vCPUs give no such signs.
    pub seen_p50_ns: u64,
    /// The same, 99th percentile (ns).
    pub seen_p99_ns: u64,
}

impl PreemptedFigures {
    fn new(vcpus: &[VcpuReport], khz: u32) -> Self {
        let latencies = Times::new(&histogram(vcpus, |vcpu| &vcpu.waits, khz), None);
        Self {
            own_samples: sum(vcpus, |vcpu| &vcpu.own_samples),
            own_set: sum(vcpus, |vcpu| &vcpu.own_set),
            other_samples: sum(vcpus, |vcpu| &vcpu.other_samples),
            other_set: sum(vcpus, |vcpu| &vcpu.other_set),
            seen_p50_ns: latencies.p50_ns,
            seen_p99_ns: latencies.p99_ns,
        }
    }

    /// Fraction of samples in which another vCPU's byte was set.
    pub fn other_share(&self) -> f64 {
        ratio(self.other_set as f64, self.other_samples as f64)
    }
}

impl WindowFigures {
    /// Whether others took so much CPU time that the figures do not count.
    pub fn is_disturbed(&self) -> bool {
        self.host.disturbance.verdict() == Verdict::Disturbed
    }

    /// Evaluates the window of a guest of `config` that did `workload`, by its report and the host.
    pub(super) fn new(report: &Report, workload: Workload, window: &Window, config: &GuestConfig) -> Self {
        let vcpus = report.vcpus.get(..config.vcpus).unwrap_or(&report.vcpus);
        let header = &report.header;
        let khz = header.tsc_khz.load(Ordering::Relaxed);
        let length = read(&header.window_closes).saturating_sub(read(&header.window_opens));
        let length_ns = ns(length, khz);
        let total = |field: fn(&ThreadStats) -> u64| {
            Some(window.vcpus.as_ref()?.iter().map(|(_, account)| field(account)).sum())
        };
        let host = HostFigures {
            length_ns: u64::try_from(window.length.as_nanos()).unwrap_or(u64::MAX),
            run_ns: total(|account| account.run_ns),
            run_delay_ns: total(|account| account.run_delay_ns),
            preemptions: total(|account| account.involuntary_switches),
            sleeps: total(|account| account.voluntary_switches),
            disturbance: window.disturbance,
        };
        let lock = (workload.job == Job::Contend).then(|| {
            let cpu_time_ns = config.cpus.count() as f64 * host.length_ns as f64;
            LockFigures::new(vcpus, LockWindow { khz, length_ns, workload, run_ns: host.run_ns, cpu_time_ns })
        });
        let samples = matches!(workload.job, Job::Watch | Job::Conformance);
        let preempted = samples.then(|| PreemptedFigures::new(vcpus, khz));
        let closed = sum(vcpus, |vcpu| &vcpu.steal_at_close);
        let guest_steal_ns = closed.saturating_sub(sum(vcpus, |vcpu| &vcpu.steal_at_open));
        let checks = if workload.job == Job::Checks { CheckFigures::all(report, khz) } else { Vec::new() };
        Self { length_ns, host, guest_steal_ns, lock, preempted, checks }
    }
}
