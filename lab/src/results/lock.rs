//! Figures of a contended lock over the measured window: throughput, waits and where CPU time went.

use std::sync::atomic::AtomicU64;

use protocol::payload::params::Workload;
use protocol::payload::report::VcpuReport;
use serde::Serialize;

use super::statistics::{jain, ns, per_second, ratio, read, sum};
use super::times::{Times, by_time, histogram};

/// What a lock, or several, did in the measured window.
#[derive(Clone, Debug, Serialize)]
pub struct LockFigures {
    /// Acquisitions in the window.
    pub acquisitions: u64,
    /// Acquisitions per second.
    pub per_second: f64,
    /// Jain's index of fairness over the vCPUs: 1 for equal shares.
    pub jain: f64,
    /// Waits for the lock, each counted once.
    pub waits: Times,
    /// Waits weighted by their length, including the waits that the window's end cut off.
    pub waits_by_time: Times,
    /// Delays from the kick of a halted waiter to its running.
    pub wakes: Times,
    /// Longest time without any acquisition (ns).
    pub longest_gap_ns: u64,
    /// Halts of waiters.
    pub halts: u64,
    /// Halts that ended without a kick.
    pub spurious_wakes: u64,
    /// Interrupts sent to wake halted waiters.
    pub kicks: u64,
    /// Times that a waiter read `preempted` set for the vCPU it waited for.
    pub preempted_seen: u64,
    /// Times that a waiter yielded to the vCPU it waited for.
    pub yields: u64,
    /// Times that a waiter left the queue of spinners, or lost its turn.
    pub queue_exits: u64,
    /// Acquisitions that passed queued waiters.
    pub steals: u64,
    /// Halts because the neighbour in the queue did not run.
    pub early_waits: u64,
    /// Critical sections during which their vCPU was preempted.
    pub holder_preemptions: u64,
    /// Time by which those sections exceeded their length, in total (ns).
    pub holder_stall_ns: u64,
    /// Times that the lock was passed to a vCPU that did not run.
    pub next_preemptions: u64,
    /// Time that the lock waited for those vCPUs, in total (ns).
    pub next_stall_ns: u64,
    /// Times that a vCPU did not run while no waiter could name it as the one to wait for.
    pub unnamed: u64,
    /// Length of those times, in total (ns).
    pub unnamed_ns: u64,
    /// Where the CPU time went.
    pub shares: Shares,
}

/// Shares of all CPU time. They sum to 1, except that `wasted` is a part of `spin`.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Shares {
    /// Inside critical sections and between them.
    pub useful: f64,
    /// Share of CPU time that waiters spun.
    pub spin: f64,
    /// Spinning while the vCPU waited for was preempted, by samples; 0 if that is not published.
    pub wasted: f64,
    /// Sending kicks. Without steal time this includes preemptions of the sender.
    pub kicks: f64,
    /// Everything else: halts, wake-ups, switches, exits, the loop itself.
    pub other: f64,
    /// Time in which no vCPU thread ran.
    pub idle: f64,
}

/// The window in which a lock was contended.
#[derive(Clone, Copy, Debug)]
pub(super) struct LockWindow {
    /// Rate of the guest's clock.
    pub(super) khz: u32,
    /// Length by the guest's clock (ns).
    pub(super) length_ns: u64,
    /// The guest's workload.
    pub(super) workload: Workload,
    /// CPU time of the vCPU threads (ns); `None` if the host does not report it.
    pub(super) run_ns: Option<u64>,
    /// CPU time of all CPUs that they may use (ns).
    pub(super) cpu_time_ns: f64,
}

impl LockFigures {
    /// Evaluates the reports of `vcpus` over `window`.
    pub(super) fn new(vcpus: &[VcpuReport], window: LockWindow) -> Self {
        let LockWindow { khz, length_ns, workload, run_ns, cpu_time_ns } = window;
        let busy = ratio(run_ns.map_or(f64::NAN, |run_ns| run_ns as f64), cpu_time_ns);
        let total = |field: fn(&VcpuReport) -> &AtomicU64| sum(vcpus, field);
        let time = |field| ns(total(field), khz);
        let longest = |field: fn(&VcpuReport) -> &AtomicU64| {
            ns(vcpus.iter().map(|vcpu| read(field(vcpu))).max().unwrap_or(0), khz)
        };
        let acquisitions = total(|vcpu| &vcpu.acquisitions);
        let waits = histogram(vcpus, |vcpu| &vcpu.waits, khz);
        let open_waits = vcpus.iter().map(|vcpu| ns(read(&vcpu.open_wait), khz));
        let share = |field| ratio(time(field) as f64, cpu_time_ns);
        let work_ns = f64::from(workload.section_ns) + f64::from(workload.think_ns);
        let useful = ratio(acquisitions as f64 * work_ns, cpu_time_ns);
        let (spin, kicks) = (share(|vcpu| &vcpu.spin_cycles), share(|vcpu| &vcpu.kick_cycles));
        Self {
            acquisitions,
            per_second: per_second(acquisitions, length_ns),
            jain: jain(vcpus.iter().map(|vcpu| read(&vcpu.acquisitions) as f64)),
            waits_by_time: Times::new(&by_time(&waits, open_waits.filter(|wait| *wait > 0)), None),
            waits: Times::new(&waits, Some(longest(|vcpu| &vcpu.longest_wait))),
            wakes: Times::new(&histogram(vcpus, |vcpu| &vcpu.wakes, khz), None),
            longest_gap_ns: longest(|vcpu| &vcpu.longest_gap),
            halts: total(|vcpu| &vcpu.halts),
            spurious_wakes: total(|vcpu| &vcpu.spurious_wakes),
            kicks: total(|vcpu| &vcpu.kicks),
            preempted_seen: total(|vcpu| &vcpu.preempted_seen),
            yields: total(|vcpu| &vcpu.yields),
            queue_exits: total(|vcpu| &vcpu.queue_exits),
            steals: total(|vcpu| &vcpu.steals),
            early_waits: total(|vcpu| &vcpu.early_waits),
            holder_preemptions: total(|vcpu| &vcpu.holder_preemptions),
            holder_stall_ns: time(|vcpu| &vcpu.holder_stall),
            next_preemptions: total(|vcpu| &vcpu.next_preemptions),
            next_stall_ns: time(|vcpu| &vcpu.next_stall),
            unnamed: total(|vcpu| &vcpu.unnamed),
            unnamed_ns: time(|vcpu| &vcpu.unnamed_cycles),
            shares: Shares {
                useful,
                spin,
                wasted: share(|vcpu| &vcpu.wasted_cycles),
                kicks,
                other: busy - useful - spin - kicks,
                idle: 1.0 - busy,
            },
        }
    }
}
