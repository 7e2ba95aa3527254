//! Intervals on a CPU, from perf's context switches.

use std::ops::Range;

use crate::policy::Ns;
use host::perf::{Switch, SwitchKind};

/// An interval for which a vCPU thread had a CPU. Timestamps are of `CLOCK_MONOTONIC` (ns).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnCpu {
    /// Its start.
    pub from: Ns,
    /// Its end.
    pub to: Ns,
    /// The host's number of the CPU.
    pub cpu: usize,
    /// Whether a preemption ended it. Otherwise the thread blocked, or `period` ended.
    pub was_preempted: bool,
}

/// Returns the intervals within `period` for which a thread with these `switches` had a CPU.
pub fn on_cpu(switches: &[Switch], period: Range<Ns>) -> Vec<OnCpu> {
    let mut on_cpu = Vec::new();
    let mut open: Option<(Ns, u32)> = None;
    // If the first switch is a sched-out, the thread had the CPU from the start.
    if let Some(first) = switches.iter().find(|switch| switch.at_ns >= period.start)
        && first.kind != SwitchKind::In
    {
        open = Some((period.start, first.cpu));
    }
    let mut close = |from: Ns, to: Ns, cpu: u32, was_preempted| {
        let (from, to) = (from.max(period.start), to.min(period.end));
        if from < to {
            on_cpu.push(OnCpu { from, to, cpu: cpu as usize, was_preempted });
        }
    };
    for switch in switches {
        match switch.kind {
            SwitchKind::In => open = Some((switch.at_ns, switch.cpu)),
            kind => {
                if let Some((from, cpu)) = open.take() {
                    close(from, switch.at_ns, cpu, kind == SwitchKind::Preempted);
                }
            }
        }
    }
    if let Some((from, cpu)) = open {
        close(from, period.end, cpu, false);
    }
    on_cpu
}
