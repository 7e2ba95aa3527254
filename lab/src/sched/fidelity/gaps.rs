//! Gaps: time in which a vCPU was planned for a CPU and wanted to run, and no vCPU ran.

use std::fmt;
use std::ops::RangeInclusive;

use super::{OnCpu, Plan, Slot};
use crate::policy::Ns;

/// Shortest pause between two vCPUs that counts as a hole (ns).
const MIN_HOLE_NS: Ns = 1_000_000;
/// Distance below which two holes belong to one gap (ns).
const MAX_HOLE_DISTANCE_NS: Ns = 100_000_000;
/// Shortest gap that is reported: the sum of its holes (ns).
const MIN_GAP_NS: Ns = 20_000_000;

/// Lengths of a gap that the kernel's fair server explains (ns). It gives a starved fair class 50
/// ms of each second, part of which it may have got before. Nothing else preempts real-time classes
/// for so long.
const FAIR_SERVER_NS: RangeInclusive<Ns> = MIN_GAP_NS..=60_000_000;

/// A gap: holes in the plan that are close to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Gap {
    /// The host's number of the CPU.
    pub cpu: usize,
    /// Its start, since scheduling began (ns).
    pub at_ns: Ns,
    /// The sum of its holes (ns).
    pub length_ns: Ns,
    /// Number of holes.
    pub holes: usize,
    /// What took the CPU.
    pub cause: GapCause,
}

/// What took a CPU from the planned vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GapCause {
    /// The kernel's fair server, which alone preempts real-time classes for so long.
    FairServer,
    /// Anything else: another task, or an outer hypervisor.
    Other,
}

impl fmt::Display for GapCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::FairServer => "fair server",
            Self::Other => "other",
        })
    }
}

/// Returns the gaps of a session, by start. `slots` are the planned slots, by start.
pub(super) fn gaps(plan: &Plan<'_>, slots: &[Slot], on_cpu: &[Vec<OnCpu>]) -> Vec<Gap> {
    let mut gaps = Vec::new();
    for (cpu, host_cpu) in plan.cpus.iter().copied().enumerate() {
        let planned: Vec<_> = slots.iter().filter(|slot| slot.cpu == cpu && slot.vcpu.is_some()).collect();
        // The current gap, and the end of its last hole.
        let mut open: Option<(Gap, Ns)> = None;
        for (from, to) in holes(&planned, on_cpu, host_cpu) {
            match &mut open {
                Some((gap, end)) if from - *end < MAX_HOLE_DISTANCE_NS => {
                    gap.length_ns += to - from;
                    gap.holes += 1;
                    *end = to;
                }
                _ => {
                    gaps.extend(open.take().map(|(gap, _)| gap));
                    let (at_ns, length_ns) = (from.saturating_sub(plan.period.start), to - from);
                    let gap = Gap { cpu: host_cpu, at_ns, length_ns, holes: 1, cause: GapCause::Other };
                    open = Some((gap, to));
                }
            }
        }
        gaps.extend(open.map(|(gap, _)| gap));
    }
    gaps.retain(|gap| gap.length_ns >= MIN_GAP_NS);
    for gap in &mut gaps {
        if plan.is_realtime && FAIR_SERVER_NS.contains(&gap.length_ns) {
            gap.cause = GapCause::FairServer;
        }
    }
    gaps.sort_by_key(|gap| gap.at_ns);
    gaps
}

/// Returns the pauses on a CPU after a vCPU was preempted there, of which at least half was planned
/// for a vCPU. By start.
fn holes(planned: &[&Slot], on_cpu: &[Vec<OnCpu>], host_cpu: usize) -> Vec<(Ns, Ns)> {
    let mut here: Vec<_> = on_cpu.iter().flatten().filter(|interval| interval.cpu == host_cpu).collect();
    here.sort_by_key(|interval| interval.from);
    let is_planned = |from: Ns, to: Ns| {
        let first = planned.partition_point(|slot| slot.to <= from);
        let within = planned.iter().skip(first).take_while(|slot| slot.from < to);
        within.map(|slot| slot.to.min(to) - slot.from.max(from)).sum::<Ns>() >= (to - from) / 2
    };
    let pairs = here.iter().zip(here.iter().skip(1)).filter(|(before, _)| before.was_preempted);
    let holes = pairs.map(|(before, after)| (before.to, after.from.max(before.to)));
    holes.filter(|(from, to)| to - from >= MIN_HOLE_NS && is_planned(*from, *to)).collect()
}
