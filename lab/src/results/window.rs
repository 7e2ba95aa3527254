//! Figures of the measured window: what the host counted, what the lock gave, what was seen of the byte.

use std::sync::atomic::Ordering;

use protocol::payload::params::{Job, Workload};
use protocol::payload::report::{Report, VcpuReport};
use serde::Serialize;

use super::CheckFigures;
use super::lock::LockFigures;
use super::statistics::{ns, ratio, read, sum};
use super::times::{Times, histogram};
use crate::window::Window;
use host::stats::ThreadStats;
use vmm::guest::GuestConfig;

/// What happened while the window was open.
#[derive(Clone, Debug, Serialize)]
pub struct WindowFigures {
    /// Its length, by the guest's clock.
    pub length_ns: u64,
    /// What the host says.
    pub host: HostFigures,
    /// Growth of all records' steal, as the guest read it.
    pub guest_steal_ns: u64,
    /// The lock, for [`Job::Contend`].
    pub lock: Option<LockFigures>,
    /// The byte, for [`Job::Watch`] and [`Job::Conformance`].
    pub byte: Option<ByteFigures>,
    /// What each form of the check costs, for [`Job::Checks`]: those of [`protocol::payload::params::Check::ALL`], and none at all.
    pub checks: Vec<CheckFigures>,
}

/// What the host says of a window.
#[derive(Clone, Debug, Serialize)]
pub struct HostFigures {
    /// Its length, by the host's clock.
    pub length_ns: u64,
    /// CPU time of the vCPU threads.
    pub run_ns: u64,
    /// Time that they wanted to run and could not.
    pub run_delay_ns: u64,
    /// Times that the host took a vCPU thread off its CPU.
    pub preemptions: u64,
    /// Times that one gave it up.
    pub sleeps: u64,
    /// CPUs' worth of time that other processes used.
    pub other_tasks_cpus: f64,
    /// CPUs' worth of time that an outer hypervisor took.
    pub stolen_cpus: f64,
    /// Whether strangers or the outer hypervisor took so much that the figures should not be believed.
    pub disturbed: bool,
}

/// What vCPUs saw of each other's bytes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ByteFigures {
    /// Samples of the own byte.
    pub own_samples: u64,
    /// Of these, set.
    pub own_set: u64,
    /// Samples of other vCPUs' bytes.
    pub other_samples: u64,
    /// Of these, set.
    pub other_set: u64,
    /// Half of the times that a byte was seen set, so long had passed since its vCPU's last sign of life; 0 where none
    /// gives one.
    pub seen_p50_ns: u64,
    /// So long, 99 in 100 times.
    pub seen_p99_ns: u64,
}

impl ByteFigures {
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

    /// Share of samples in which another vCPU's byte was set.
    pub fn other_share(&self) -> f64 {
        ratio(self.other_set as f64, self.other_samples as f64)
    }
}

impl WindowFigures {
    /// The figures of a window that our payload reported, in a guest of `config` that did `workload`.
    pub(super) fn new(report: &Report, workload: Workload, window: &Window, config: &GuestConfig) -> Self {
        let vcpus = report.vcpus.get(..config.vcpus).unwrap_or(&report.vcpus);
        let header = &report.header;
        let khz = header.tsc_khz.load(Ordering::Relaxed);
        let length = read(&header.window_closes).saturating_sub(read(&header.window_opens));
        let length_ns = ns(length, khz);
        let accounts = || window.vcpus.iter().map(|(_, account)| account);
        let total = |field: fn(&ThreadStats) -> u64| accounts().map(field).sum();
        let host = HostFigures {
            length_ns: u64::try_from(window.length.as_nanos()).unwrap_or(u64::MAX),
            run_ns: total(|account| account.run_ns),
            run_delay_ns: total(|account| account.run_delay_ns),
            preemptions: total(|account| account.involuntary_switches),
            sleeps: total(|account| account.voluntary_switches),
            other_tasks_cpus: window.other_tasks(),
            stolen_cpus: window.stolen(),
            disturbed: window.is_disturbed(),
        };
        let lock = (workload.job == Job::Contend).then(|| {
            let cpu_time = config.cpus.count() as f64 * host.length_ns as f64;
            LockFigures::new(vcpus, khz, length_ns, workload, ratio(host.run_ns as f64, cpu_time), cpu_time)
        });
        let samples = matches!(workload.job, Job::Watch | Job::Conformance);
        let byte = samples.then(|| ByteFigures::new(vcpus, khz));
        let closed = sum(vcpus, |vcpu| &vcpu.steal_at_close);
        let guest_steal_ns = closed.saturating_sub(sum(vcpus, |vcpu| &vcpu.steal_at_open));
        let checks = if workload.job == Job::Checks { CheckFigures::all(report, khz) } else { Vec::new() };
        Self { length_ns, host, guest_steal_ns, lock, byte, checks }
    }
}
