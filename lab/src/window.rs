//! Measuring from the host: what its scheduler has counted, between two moments of a run.
//!
//! The guest says when its window opens and closes; the thread of the vCPU that says it takes a [`Snapshot`] then, and
//! lets the guest go on. The two sides' windows differ by as long as it took for that vCPU to notice.

use std::time::{Duration, Instant};

use protocol::VcpuId;

use host::cpus::Cpus;
use host::stats::{CpuStats, ThreadStats};
use vmm::vcpu::control::VcpuControl;

/// More than this much of a CPU used by others, or taken by an outer hypervisor, and a point is disturbed.
const DISTURBANCE: f64 = 0.06;

/// So much time may be a matter of counting: the kernel counts in ticks of 10 ms, each CPU for itself.
const COUNTING: Duration = Duration::from_millis(25);

/// The accounts at one moment.
#[derive(Debug)]
pub struct Snapshot {
    at: Instant,
    machine: CpuStats,
    vcpus: Vec<(VcpuId, ThreadStats)>,
}

impl Snapshot {
    /// Reads the accounts of the vCPU threads that are at `gate`, and of the CPUs they may use.
    pub fn take(control: &VcpuControl, cpus: &Cpus) -> Self {
        let at = Instant::now();
        // An account that cannot be read belongs to a thread that has just ended, or to a host without /proc.
        let machine = CpuStats::read(cpus).unwrap_or_default();
        let read = |vcpu, tid| (vcpu, ThreadStats::read(tid).unwrap_or_default());
        let vcpus = control.threads().into_iter().map(|(vcpu, thread)| read(vcpu, thread.tid())).collect();
        Self { at, machine, vcpus }
    }
}

/// The two ends of a window, as far as they were told, in whichever order: each by the vCPU that noticed it first, which
/// the host may take off its CPU before it has told.
#[derive(Debug, Default)]
pub struct Ends {
    /// When it opened.
    pub opened: Option<Snapshot>,
    /// When it closed.
    pub closed: Option<Snapshot>,
}

impl Ends {
    /// The window between them, if both were told.
    pub fn window(&self) -> Option<Window> {
        Some(Window::between(self.opened.as_ref()?, self.closed.as_ref()?))
    }
}

/// What the host counted between two snapshots.
#[derive(Clone, Debug)]
pub struct Window {
    /// Its length.
    pub length: Duration,
    /// What the CPUs did.
    pub machine: CpuStats,
    /// What each vCPU thread did.
    pub vcpus: Vec<(VcpuId, ThreadStats)>,
}

impl Window {
    /// From `opened` to `closed`. A vCPU that is not in both is left out.
    pub fn between(opened: &Snapshot, closed: &Snapshot) -> Self {
        let vcpus = closed.vcpus.iter().filter_map(|(vcpu, account)| {
            let (_, before) = opened.vcpus.iter().find(|(id, _)| id == vcpu)?;
            Some((*vcpu, account.since(*before)))
        });
        Self {
            length: closed.at.saturating_duration_since(opened.at),
            machine: closed.machine.since(opened.machine),
            vcpus: vcpus.collect(),
        }
    }

    /// CPUs' worth of time that other processes used.
    pub fn other_tasks(&self) -> f64 {
        self.machine.other_tasks().as_secs_f64() / self.length.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    /// CPUs' worth of time that an outer hypervisor took.
    pub fn stolen(&self) -> f64 {
        self.machine.stolen.as_secs_f64() / self.length.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    /// Whether the point is disturbed. It looks at CPU time only, never at the result.
    pub fn is_disturbed(&self) -> bool {
        let tolerated = self.length.mul_f64(DISTURBANCE).max(COUNTING);
        self.machine.other_tasks() > tolerated || self.machine.stolen > tolerated
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(at: Instant, busy_ms: u64, own_ms: u64, run_ns: u64) -> Snapshot {
        let machine = CpuStats {
            busy: Duration::from_millis(busy_ms),
            stolen: Duration::ZERO,
            own: Duration::from_millis(own_ms),
        };
        let account = ThreadStats { run_ns, ..ThreadStats::default() };
        Snapshot { at, machine, vcpus: vec![(VcpuId::BOOT, account)] }
    }

    #[test]
    fn window_has_both_ends_in_whichever_order_they_are_told() {
        let began = Instant::now();
        let mut ends = Ends::default();
        assert!(ends.window().is_none());
        ends.closed = Some(snapshot(began + Duration::from_secs(1), 2000, 1900, 900));
        assert!(ends.window().is_none());
        ends.opened = Some(snapshot(began, 100, 100, 100));
        let window = ends.window().unwrap();
        assert_eq!((window.length, window.vcpus[0].1.run_ns), (Duration::from_secs(1), 800));
    }

    #[test]
    fn window_is_disturbed_by_what_strangers_used_and_not_by_our_own_use() {
        let began = Instant::now();
        let between = |busy_ms, own_ms| {
            Window::between(
                &snapshot(began, 0, 0, 0),
                &snapshot(began + Duration::from_secs(1), busy_ms, own_ms, 0),
            )
        };
        assert!(!between(2000, 1950).is_disturbed());
        assert!(between(2000, 1900).is_disturbed());
        assert!((between(2000, 1900).other_tasks() - 0.1).abs() < 1e-9);
    }
}
