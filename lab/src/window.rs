//! Windows: what the host's scheduler counted between two moments of a run.
//!
//! Each vCPU reports when it finds the window open, and closed. The thread of the first one takes a
//! [`Snapshot`] of all vCPUs before the guest continues. The windows of guest and host differ by
//! the time until that vCPU saw the change.
//!
//! A vCPU that waits for a CPU at that moment sees the change later, and its steal grows only then.
//! So each thread also reads its own times at its own reports ([`OwnEnds`]). Over such a window,
//! run time and steal of a vCPU that always wants to run add up to the window's length.

use std::time::{Duration, Instant};

use protocol::VcpuId;

use host::cpus::Cpus;
use host::disturbance::Disturbance;
use host::stats::{CpuStats, ThreadStats};
use host::thread_times::ThreadTimes;
use vmm::vcpu::control::VcpuControl;

/// The host's counters at one moment.
#[derive(Debug)]
pub struct Snapshot {
    at: Instant,
    /// Number of CPUs that the vCPU threads may use.
    cpus: usize,
    /// Use of these CPUs; `None` if it cannot be read.
    machine: Option<CpuStats>,
    /// `None` for a thread that has just exited, or that the host does not report.
    vcpus: Vec<(VcpuId, Option<ThreadStats>)>,
}

impl Snapshot {
    /// Reads the counters of the vCPU threads of `control`, and of the CPUs that they may use.
    pub fn take(control: &VcpuControl, cpus: &Cpus) -> Self {
        let at = Instant::now();
        let machine = CpuStats::read(cpus).ok();
        let read = |vcpu, tid| (vcpu, ThreadStats::read(tid).ok());
        let vcpus = control.threads().into_iter().map(|(vcpu, thread)| read(vcpu, thread.tid())).collect();
        Self { at, cpus: cpus.count(), machine, vcpus }
    }
}

/// The ends of a window. Each is reported by the vCPU that sees it first. The host may preempt that
/// vCPU before its report, so they arrive in any order.
#[derive(Debug, Default)]
pub struct Ends {
    /// The snapshot at which it opened.
    pub opened: Option<Snapshot>,
    /// The snapshot at which it closed.
    pub closed: Option<Snapshot>,
}

impl Ends {
    /// The window between them; `None` unless both were reported.
    pub fn window(&self) -> Option<Window> {
        Some(Window::between(self.opened.as_ref()?, self.closed.as_ref()?))
    }
}

/// The ends of a vCPU's own window, as its thread reads them: at the last report of each.
#[derive(Clone, Copy, Debug, Default)]
pub struct OwnEnds {
    /// When it found the window open.
    pub opened: Option<ThreadTimes>,
    /// When it found the window closed.
    pub closed: Option<ThreadTimes>,
}

impl OwnEnds {
    /// The window between them; `None` unless both were reported, in this order.
    pub fn window(self) -> Option<OwnWindow> {
        let (opened, closed) = (self.opened?, self.closed?);
        Some(OwnWindow {
            length_ns: closed.at_ns.checked_sub(opened.at_ns)?,
            run_ns: closed.run_ns.saturating_sub(opened.run_ns),
        })
    }
}

/// A vCPU's own window: from its report that it opened to its report that it closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnWindow {
    /// Its length (ns).
    pub length_ns: u64,
    /// CPU time of the vCPU's thread in it (ns).
    pub run_ns: u64,
}

/// What the host counted between two snapshots.
#[derive(Clone, Debug)]
pub struct Window {
    /// Its length.
    pub length: Duration,
    /// The CPU time that others took.
    pub disturbance: Disturbance,
    /// Statistics of each vCPU thread; `None` if the host does not report those of one.
    pub vcpus: Option<Vec<(VcpuId, ThreadStats)>>,
}

impl Window {
    /// The window from `opened` to `closed`, without vCPUs that are not in both.
    pub fn between(opened: &Snapshot, closed: &Snapshot) -> Self {
        let vcpus = closed.vcpus.iter().filter_map(|(vcpu, account)| {
            let (_, before) = opened.vcpus.iter().find(|(id, _)| id == vcpu)?;
            Some(account.zip(*before).map(|(account, before)| (*vcpu, account.since(before))))
        });
        let length = closed.at.saturating_duration_since(opened.at);
        let used = closed.machine.zip(opened.machine).map(|(closed, opened)| closed.since(opened));
        Self { length, disturbance: Disturbance::new(length, closed.cpus, used), vcpus: vcpus.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use host::disturbance::Verdict;

    fn snapshot(at: Instant, busy_ms: u64, own_ms: u64, run_ns: u64) -> Snapshot {
        let machine = Some(CpuStats {
            busy: Duration::from_millis(busy_ms),
            stolen: Duration::ZERO,
            own: Duration::from_millis(own_ms),
        });
        let account = ThreadStats { run_ns, ..ThreadStats::default() };
        Snapshot { at, cpus: 2, machine, vcpus: vec![(VcpuId::BOOT, Some(account))] }
    }

    #[test]
    fn window_needs_both_ends_in_any_order() {
        let began = Instant::now();
        let mut ends = Ends::default();
        assert!(ends.window().is_none());
        ends.closed = Some(snapshot(began + Duration::from_secs(1), 2000, 1900, 900));
        assert!(ends.window().is_none());
        ends.opened = Some(snapshot(began, 100, 100, 100));
        let window = ends.window().unwrap();
        assert_eq!((window.length, window.vcpus.unwrap()[0].1.run_ns), (Duration::from_secs(1), 800));
    }

    #[test]
    fn own_window_needs_both_ends_in_order() {
        let at = |ms: u64| Some(ThreadTimes { at_ns: ms * 1_000_000, run_ns: ms * 500_000, run_delay_ns: 0 });
        let ends = OwnEnds { opened: at(1000), closed: at(3000) };
        assert_eq!(ends.window(), Some(OwnWindow { length_ns: 2_000_000_000, run_ns: 1_000_000_000 }));
        assert_eq!(OwnEnds { opened: at(3000), closed: at(1000) }.window(), None);
        assert_eq!(OwnEnds { closed: None, ..ends }.window(), None);
    }

    #[test]
    fn window_is_disturbed_by_other_tasks_and_not_by_own_threads() {
        let began = Instant::now();
        let between = |busy_ms, own_ms| {
            Window::between(
                &snapshot(began, 0, 0, 0),
                &snapshot(began + Duration::from_secs(1), busy_ms, own_ms, 0),
            )
        };
        assert_eq!(between(2000, 1950).disturbance.verdict(), Verdict::Known);
        assert_eq!(between(2000, 1900).disturbance.verdict(), Verdict::Disturbed);
        assert!((between(2000, 1900).disturbance.other_tasks_cpus() - 0.1).abs() < 1e-9);
    }

    #[test]
    fn window_whose_cpu_time_cannot_be_read_is_unknown() {
        let began = Instant::now();
        let unread = Snapshot { machine: None, ..snapshot(began, 0, 0, 0) };
        let window = Window::between(&unread, &snapshot(began + Duration::from_secs(1), 2000, 2000, 0));
        assert_eq!(window.disturbance.verdict(), Verdict::Unknown);
    }

    #[test]
    fn window_with_a_thread_that_the_host_does_not_report_has_no_statistics() {
        let began = Instant::now();
        let (opened, closed) = (snapshot(began, 0, 0, 5), snapshot(began, 9, 9, 9));
        assert!(Window::between(&opened, &closed).vcpus.is_some());
        let unread = Snapshot { vcpus: vec![(VcpuId::BOOT, None)], ..opened };
        assert!(Window::between(&unread, &closed).vcpus.is_none());
    }
}
