//! The watchdog: detects vCPUs that the policy does not run.
//!
//! It judges by the time for which the monitor itself ran: a policy cannot run a vCPU of a process
//! that is stopped. Only the driver thread judges, since it knows how long the process was stopped
//! before it judges; a vCPU thread may be the first one to run after a stop.

use std::time::Duration;

use crate::policy::{Ns, SchedState, Vcpu, VcpuView};

/// Detects vCPUs that the policy does not run, as the watchdog of `sched_ext` does.
#[derive(Debug)]
pub(super) struct Watchdog {
    timeout: Duration,
    /// When each vCPU could last run (ns, `CLOCK_MONOTONIC` less `stopped_ns`).
    could_run: Vec<Ns>,
    /// How long the process was stopped so far (ns), as far as the driver knows.
    stopped_ns: Ns,
    /// Whether the guests publish which vCPUs are halted.
    knows_halts: bool,
}

/// A vCPU that the policy did not run for longer than the timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Starved {
    pub(super) vcpu: Vcpu,
    pub(super) lasted: Duration,
}

impl Watchdog {
    pub(super) fn new(vcpus: usize, timeout: Duration, now: Ns, knows_halts: bool) -> Self {
        Self { timeout, could_run: vec![now; vcpus], stopped_ns: 0, knows_halts }
    }

    /// Records which vCPUs `state` lets run at `now`.
    pub(super) fn update(&mut self, state: &SchedState, now: Ns) {
        let now = now.saturating_sub(self.stopped_ns);
        for (vcpu, last) in self.could_run.iter_mut().enumerate() {
            let Some(view) = state.vcpus.get(vcpu) else { continue };
            if state.cpu_of(vcpu).is_some() || needs_no_cpu(state, view, self.knows_halts) {
                *last = now;
            }
        }
    }

    /// Records which vCPUs `state` lets run now; returns the first one that starves. The process was
    /// stopped for `stopped_ns` so far.
    pub(super) fn check(&mut self, state: &SchedState, stopped_ns: Ns) -> Option<Starved> {
        self.stopped_ns = stopped_ns;
        self.update(state, state.now);
        let now = state.now.saturating_sub(stopped_ns);
        for last in &mut self.could_run {
            // Later only if it was recorded after a stop that was not known yet.
            *last = now.min(*last);
        }
        let starved = |(vcpu, last): (Vcpu, &Ns)| Starved { vcpu, lasted: Duration::from_nanos(now - last) };
        self.could_run.iter().enumerate().map(starved).find(|starved| starved.lasted > self.timeout)
    }
}

/// Whether a vCPU without a CPU does not starve: the host runs it, or it has nothing to run.
fn needs_no_cpu(state: &SchedState, view: &VcpuView, knows_halts: bool) -> bool {
    let is_hosts = state.is_host_scheduled(view.home) && !view.is_throttled;
    is_hosts || knows_halts && view.hints.is_halted || view.is_gone
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Assignment, CpuView};

    const S: Ns = 1_000_000_000;
    const TIMEOUT: Duration = Duration::from_secs(5);

    /// One CPU that runs vCPU `runs` of two, at `now`.
    fn state(runs: Vcpu, now: Ns) -> SchedState {
        let cpu = CpuView { assignment: Assignment::Vcpu(runs), until: 0 };
        SchedState { now, cpus: vec![cpu], vcpus: vec![VcpuView::default(); 2] }
    }

    #[test]
    fn vcpu_without_a_cpu_for_longer_than_the_timeout_starves() {
        let mut watchdog = Watchdog::new(2, TIMEOUT, 0, false);
        assert_eq!(watchdog.check(&state(0, 5 * S), 0), None);
        let lasted = Duration::from_secs(6);
        assert_eq!(watchdog.check(&state(0, 6 * S), 0), Some(Starved { vcpu: 1, lasted }));
    }

    #[test]
    fn stop_of_the_monitor_is_no_starvation() {
        let mut watchdog = Watchdog::new(2, TIMEOUT, 0, false);
        watchdog.update(&state(1, S), S);
        // Stopped from 2 to 9 s. A vCPU thread runs first, and puts vCPU 0 on the CPU
        watchdog.update(&state(0, 9 * S), 9 * S);
        assert_eq!(watchdog.check(&state(0, 9 * S), 7 * S), None);
        watchdog.update(&state(1, 10 * S), 10 * S);
        assert_eq!(watchdog.check(&state(1, 10 * S), 7 * S), None);
    }

    #[test]
    fn stop_of_the_monitor_excuses_no_starvation_after_it() {
        let mut watchdog = Watchdog::new(2, TIMEOUT, 0, false);
        watchdog.update(&state(1, 9 * S), 9 * S);
        assert_eq!(watchdog.check(&state(0, 9 * S), 7 * S), None);
        assert_eq!(watchdog.check(&state(0, 14 * S), 7 * S), None);
        let lasted = Duration::from_secs(6);
        assert_eq!(watchdog.check(&state(0, 15 * S), 7 * S), Some(Starved { vcpu: 1, lasted }));
    }
}
