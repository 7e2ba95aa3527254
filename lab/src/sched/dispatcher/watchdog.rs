//! The watchdog: detects vCPUs that the policy does not run.

use std::time::Duration;

use crate::policy::{Ns, SchedState, Vcpu, VcpuView};

/// Detects vCPUs that the policy does not run, as the watchdog of `sched_ext` does.
#[derive(Debug)]
pub(super) struct Watchdog {
    timeout: Duration,
    /// When each vCPU could last run (ns, `CLOCK_MONOTONIC`).
    could_run: Vec<Ns>,
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
        Self { timeout, could_run: vec![now; vcpus], knows_halts }
    }

    /// Records which vCPUs `state` lets run at `now`.
    pub(super) fn update(&mut self, state: &SchedState, now: Ns) {
        for (vcpu, last) in self.could_run.iter_mut().enumerate() {
            let Some(view) = state.vcpus.get(vcpu) else { continue };
            if state.cpu_of(vcpu).is_some() || needs_no_cpu(state, view, self.knows_halts) {
                *last = now;
            }
        }
    }

    /// Records which vCPUs `state` lets run now; returns the first one that starves.
    pub(super) fn check(&mut self, state: &SchedState) -> Option<Starved> {
        self.update(state, state.now);
        let starved = |(vcpu, last): (Vcpu, &Ns)| Starved {
            vcpu,
            lasted: Duration::from_nanos(state.now.saturating_sub(*last)),
        };
        self.could_run.iter().enumerate().map(starved).find(|starved| starved.lasted > self.timeout)
    }
}

/// Whether a vCPU without a CPU does not starve: the host runs it, or it has nothing to run.
fn needs_no_cpu(state: &SchedState, view: &VcpuView, knows_halts: bool) -> bool {
    let is_hosts = state.is_host_scheduled(view.home) && !view.is_throttled;
    is_hosts || knows_halts && view.hints.is_halted || view.is_gone
}
