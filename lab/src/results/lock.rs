//! What a lock gave in the measured window, and what it cost.

use std::sync::atomic::AtomicU64;

use protocol::payload::params::Workload;
use protocol::payload::report::VcpuReport;
use serde::Serialize;

use super::statistics::{jain, ns, ratio, read, sum};
use super::times::{Times, by_time, histogram};

/// What the lock gave.
#[derive(Clone, Debug, Serialize)]
pub struct LockFigures {
    /// Acquisitions.
    pub acquisitions: u64,
    /// Acquisitions in a second.
    pub per_second: f64,
    /// Jain's index of fairness over the vCPUs: 1 is equal shares.
    pub jain: f64,
    /// Waits for the lock, each counted once.
    pub waits: Times,
    /// Waits for the lock, each counted for as long as it took, and those that the window's end cut off.
    pub waits_by_time: Times,
    /// From the kick of a halted waiter to its running.
    pub wakes: Times,
    /// The longest time in which nobody got through.
    pub longest_gap_ns: u64,
    /// Waiters that halted.
    pub halts: u64,
    /// Of them, those that went on although nobody had woken them.
    pub spurious_wakes: u64,
    /// Interrupts sent to wake them.
    pub kicks: u64,
    /// Times that a waiter saw the byte of the vCPU it waited for.
    pub preempted_seen: u64,
    /// Times that a waiter offered its CPU to the vCPU it waited for.
    pub yields: u64,
    /// Times that a waiter left the queue of spinners, or lost its turn.
    pub queue_exits: u64,
    /// Locks that were taken past others who were queueing for them.
    pub steals: u64,
    /// Waiters that halted because their neighbour in the queue did not run.
    pub early_waits: u64,
    /// Sections during which their vCPU was preempted.
    pub holder_preemptions: u64,
    /// How much longer than meant those sections took, all told (ns).
    pub holder_stall_ns: u64,
    /// Times that the lock had been passed to a vCPU that was off its CPU.
    pub next_preemptions: u64,
    /// How long the lock waited for those, all told (ns).
    pub next_stall_ns: u64,
    /// Times that a vCPU was off its CPU where no other could name it as the one to wait for.
    pub unnamed: u64,
    /// For how long, all told (ns).
    pub unnamed_ns: u64,
    /// Where the CPU time went.
    pub shares: Shares,
}

/// Where CPU time went, as shares of all CPU time there was. They sum up to 1, but for `wasted`, which is a part of `spin`.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Shares {
    /// In sections and between them.
    pub useful: f64,
    /// Spinning.
    pub spin: f64,
    /// Of it, while the vCPU waited for was preempted, by samples; 0 where nobody publishes that.
    pub wasted: f64,
    /// Sending kicks. Without steal time, a kick that cost its sender the CPU counts until the sender was back.
    pub kicks: f64,
    /// Halting, waking, switching, exits, the loop itself.
    pub rest: f64,
    /// No vCPU thread ran.
    pub idle: f64,
}

impl LockFigures {
    /// What `vcpus` report of a window of `length_ns` in which vCPU threads were `busy` for that share of `cpu_time_ns`.
    pub(super) fn new(
        vcpus: &[VcpuReport],
        khz: u32,
        length_ns: u64,
        workload: Workload,
        busy: f64,
        cpu_time_ns: f64,
    ) -> Self {
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
            per_second: ratio(acquisitions as f64 * 1e9, length_ns as f64),
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
                rest: busy - useful - spin - kicks,
                idle: 1.0 - busy,
            },
        }
    }
}
