//! The report: figures that the payload leaves in its memory for the monitor.
//!
//! The report has one header page, and for each vCPU two pages of figures and one of
//! [`super::hints`]. It lies at the address in [`super::note::Note`]. Every field is an atomic with
//! one writer, so the monitor may read it at any time without a lock. The monitor itself writes
//! only [`Header::has_reader`], [`Header::close_now`] and [`super::hints::HostHints`].
//!
//! The report is guest memory, so the monitor trusts no value in it. Times are in cycles of the
//! guest's TSC unless the name has a unit. "In the window" means: while the measured window was
//! open.

use core::mem::{align_of, size_of};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::conformance::Findings;
use super::hints::HintPage;
use super::histogram::{BUCKETS, bucket_of};
use super::params::Check;
use crate::MAX_VCPUS;

/// Moments of a run. The payload writes them to [`super::machine::MILESTONE_PORT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Milestone {
    /// All vCPUs are up, and the warm-up begins.
    AllUp = 1,
    /// The measured window begins. Each vCPU writes it when it finds the window open, and then
    /// reads [`VcpuReport::steal_at_open`]; again if steal grew in between.
    WindowOpens = 2,
    /// The measured window ends. Each vCPU writes it when it finds the window closed, and then
    /// reads [`VcpuReport::steal_at_close`]; again if steal grew in between.
    WindowCloses = 3,
}

impl Milestone {
    /// Returns the milestone that a guest wrote as `code`.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::AllUp),
            2 => Some(Self::WindowOpens),
            3 => Some(Self::WindowCloses),
            _ => None,
        }
    }
}

/// Value of [`Crash::vector`] for a Rust panic, which has no exception vector.
pub const VECTOR_PANIC: u32 = 0x100;

/// The report of a guest.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct Report {
    /// Figures of the whole guest.
    pub header: Header,
    /// Figures of each vCPU. Entries past the last vCPU stay zero.
    pub vcpus: [VcpuReport; MAX_VCPUS],
    /// Hint page of each vCPU.
    pub hints: [HintPage; MAX_VCPUS],
}

/// Figures of the whole guest.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct Header {
    /// The monitor stores 1 before the first entry. The payload then does not print its figures to
    /// COM1.
    pub has_reader: AtomicU32,
    /// The monitor stores 1 to close the measured window at once and end the job.
    pub close_now: AtomicU32,
    /// Number of vCPUs that are up.
    pub vcpus_up: AtomicU32,
    /// Rate of the guest's TSC (kHz): the parameter `tsc_khz`, or measured.
    pub tsc_khz: AtomicU32,
    /// The last [`Milestone`] passed; 0 before the first.
    pub milestone: AtomicU32,
    /// Begin of the measured window; 0 until all vCPUs are up.
    pub window_opens: AtomicU64,
    /// End of the measured window; 0 until all vCPUs are up.
    pub window_closes: AtomicU64,
    /// Sections entered in the whole run, counted under the lock by a plain load and store.
    ///
    /// It equals the sum of [`VcpuReport::acquisitions_ever`] if and only if the lock excluded all
    /// others.
    pub sections: AtomicU64,
    /// The first crash of a vCPU.
    pub crash: Crash,
    /// Verdicts of [`super::params::Job::Conformance`].
    pub findings: Findings,
    /// Cost of each form of the check, in the order of [`Check::ALL`]; the last entry is a loop
    /// without a check. Measured by [`super::params::Job::Checks`].
    pub checks: [CheckCost; FORMS + 1],
}

/// Number of forms of the check.
pub const FORMS: usize = Check::ALL.len();

/// Cost of one form of the check: medians in thousandths of a cycle, 0 where not measured.
#[derive(Debug)]
#[repr(C)]
pub struct CheckCost {
    /// Throughput: one call among others that do not depend on it.
    pub call: AtomicU64,
    /// Latency: one call whose argument is the result of the call before.
    pub chain: AtomicU64,
    /// One iteration of an owner-spinning loop, compiled as a function of its own.
    pub spin: AtomicU64,
    /// One iteration of the same loop, inlined into a larger function.
    pub folded: AtomicU64,
}

impl CheckCost {
    const fn new() -> Self {
        Self {
            call: AtomicU64::new(0),
            chain: AtomicU64::new(0),
            spin: AtomicU64::new(0),
            folded: AtomicU64::new(0),
        }
    }
}

/// How the payload crashed; all zero if it has not.
#[derive(Debug)]
#[repr(C)]
pub struct Crash {
    /// 1 once a vCPU has claimed this structure, 2 once the fields below are complete.
    pub state: AtomicU32,
    /// The vCPU that crashed.
    pub vcpu: AtomicU32,
    /// The exception's vector, or [`VECTOR_PANIC`].
    pub vector: AtomicU32,
    /// Source line of the panic; 0 for an exception.
    pub line: AtomicU32,
    /// Error code of the exception; 0 if it has none.
    pub error: AtomicU64,
    /// Instruction pointer of the exception; 0 for a panic.
    pub rip: AtomicU64,
    /// For a page fault: the address that could not be accessed (CR2).
    pub address: AtomicU64,
}

/// Figures of one vCPU. Only that vCPU writes them.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct VcpuReport {
    /// Time of the payload's first instruction on this vCPU.
    pub first_instruction: AtomicU64,
    /// Lock acquisitions in the window.
    pub acquisitions: AtomicU64,
    /// Lock acquisitions in the whole run.
    pub acquisitions_ever: AtomicU64,
    /// Of these, acquisitions as a reader.
    pub shared_ever: AtomicU64,
    /// CPU time spent spinning for a lock, in the window.
    pub spin_cycles: AtomicU64,
    /// Halts while waiting for a lock, in the window.
    pub halts: AtomicU64,
    /// Time from a halt until the vCPU ran again, in the window.
    pub halt_cycles: AtomicU64,
    /// Interrupts sent to wake parked waiters, in the window.
    pub kicks: AtomicU64,
    /// CPU time of sending them, in the window, without the steal in between.
    pub kick_cycles: AtomicU64,
    /// Times that the vCPU waited for was found preempted, in the window.
    pub preempted_seen: AtomicU64,
    /// Times that the vCPU left a queue of spinners or lost its turn, in the window.
    pub queue_exits: AtomicU64,
    /// Part of `spin_cycles` in which the vCPU waited for was preempted, in the window; sampled.
    pub wasted_cycles: AtomicU64,
    /// Halts that ended without a kick, in the window.
    pub spurious_wakes: AtomicU64,
    /// Yields to the vCPU waited for, in the window.
    pub yields: AtomicU64,
    /// Acquisitions that overtook queued waiters, in the window.
    pub steals: AtomicU64,
    /// Halts because the neighbour in the queue did not run, in the window.
    pub early_waits: AtomicU64,
    /// Times that this vCPU was off its CPU in a place where no waiter could name it as the vCPU to
    /// wait for, in the window.
    pub unnamed: AtomicU64,
    /// Total time of these, in the window.
    pub unnamed_cycles: AtomicU64,
    /// Sections during which this vCPU was preempted, in the window; judged by `steal` of its own
    /// record.
    pub holder_preemptions: AtomicU64,
    /// Time by which these sections took longer than intended.
    pub holder_stall: AtomicU64,
    /// Times that this vCPU was handed the lock while it was preempted as the next in line, in the
    /// window.
    pub next_preemptions: AtomicU64,
    /// Total time for which the lock then waited for this vCPU.
    pub next_stall: AtomicU64,
    /// Age of the wait that was unfinished when the window closed; 0 if there was none.
    pub open_wait: AtomicU64,
    /// Longest wait for a lock acquired in the window.
    pub longest_wait: AtomicU64,
    /// Longest time without the end of any section that this vCPU found when it acquired the lock,
    /// in the window.
    pub longest_gap: AtomicU64,
    /// Heartbeat: the time at which the vCPU last showed that it runs, in scenes of
    /// [`super::params::Job::Conformance`].
    pub beat: AtomicU64,
    /// Samples of `preempted` in the own record, by [`super::params::Job::Watch`] and
    /// [`super::params::Job::Conformance`].
    pub own_samples: AtomicU64,
    /// Of these, samples in which it was set.
    pub own_set: AtomicU64,
    /// Samples of `preempted` in the records of other vCPUs.
    pub other_samples: AtomicU64,
    /// Of these, samples in which it was set.
    pub other_set: AtomicU64,
    /// `steal` of the own record when the window opened (ns).
    pub steal_at_open: AtomicU64,
    /// `steal` of the own record when the window closed (ns).
    pub steal_at_close: AtomicU64,
    /// Histogram of waits for locks acquired in the window (cycles). In
    /// [`super::params::Scene::Spin`]: of the times from another vCPU's last heartbeat until its
    /// `preempted` was seen set.
    pub waits: [AtomicU32; BUCKETS],
    /// Histogram of times from a kick until the woken vCPU ran, in the window (cycles).
    pub wakes: [AtomicU32; BUCKETS],
}

const _: () = {
    assert!(size_of::<Header>() == 4096 && align_of::<Header>() == 4096);
    assert!(size_of::<VcpuReport>() == 8192 && align_of::<VcpuReport>() == 4096);
};

impl Report {
    /// Returns an empty report: all zero.
    pub const fn new() -> Self {
        Self {
            header: Header::new(),
            vcpus: [const { VcpuReport::new() }; MAX_VCPUS],
            hints: [const { HintPage::new() }; MAX_VCPUS],
        }
    }
}

impl Header {
    const fn new() -> Self {
        Self {
            has_reader: AtomicU32::new(0),
            close_now: AtomicU32::new(0),
            vcpus_up: AtomicU32::new(0),
            tsc_khz: AtomicU32::new(0),
            milestone: AtomicU32::new(0),
            window_opens: AtomicU64::new(0),
            window_closes: AtomicU64::new(0),
            sections: AtomicU64::new(0),
            crash: Crash {
                state: AtomicU32::new(0),
                vcpu: AtomicU32::new(0),
                vector: AtomicU32::new(0),
                line: AtomicU32::new(0),
                error: AtomicU64::new(0),
                rip: AtomicU64::new(0),
                address: AtomicU64::new(0),
            },
            findings: Findings::new(),
            checks: [const { CheckCost::new() }; FORMS + 1],
        }
    }
}

impl VcpuReport {
    /// Returns empty figures: all zero.
    pub const fn new() -> Self {
        Self {
            first_instruction: AtomicU64::new(0),
            acquisitions: AtomicU64::new(0),
            acquisitions_ever: AtomicU64::new(0),
            shared_ever: AtomicU64::new(0),
            spin_cycles: AtomicU64::new(0),
            halts: AtomicU64::new(0),
            halt_cycles: AtomicU64::new(0),
            kicks: AtomicU64::new(0),
            kick_cycles: AtomicU64::new(0),
            preempted_seen: AtomicU64::new(0),
            queue_exits: AtomicU64::new(0),
            wasted_cycles: AtomicU64::new(0),
            spurious_wakes: AtomicU64::new(0),
            yields: AtomicU64::new(0),
            steals: AtomicU64::new(0),
            early_waits: AtomicU64::new(0),
            unnamed: AtomicU64::new(0),
            unnamed_cycles: AtomicU64::new(0),
            holder_preemptions: AtomicU64::new(0),
            holder_stall: AtomicU64::new(0),
            next_preemptions: AtomicU64::new(0),
            next_stall: AtomicU64::new(0),
            open_wait: AtomicU64::new(0),
            longest_wait: AtomicU64::new(0),
            longest_gap: AtomicU64::new(0),
            beat: AtomicU64::new(0),
            own_samples: AtomicU64::new(0),
            own_set: AtomicU64::new(0),
            other_samples: AtomicU64::new(0),
            other_set: AtomicU64::new(0),
            steal_at_open: AtomicU64::new(0),
            steal_at_close: AtomicU64::new(0),
            waits: [const { AtomicU32::new(0) }; BUCKETS],
            wakes: [const { AtomicU32::new(0) }; BUCKETS],
        }
    }

    /// Records one wait of `cycles`. Only the vCPU itself may call this.
    pub fn record_wait(&self, cycles: u64) {
        count(&self.waits, cycles);
        raise(&self.longest_wait, cycles);
    }

    /// Records one wake-up that took `cycles`. Only the vCPU itself may call this.
    pub fn record_wake(&self, cycles: u64) {
        count(&self.wakes, cycles);
    }
}

impl Default for Report {
    fn default() -> Self {
        Self::new()
    }
}

impl Default for VcpuReport {
    fn default() -> Self {
        Self::new()
    }
}

fn count(buckets: &[AtomicU32; BUCKETS], cycles: u64) {
    if let Some(bucket) = buckets.get(bucket_of(cycles)) {
        bucket.store(bucket.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }
}

/// Adds `amount` to a counter whose only writer is the caller. It needs no locked instruction.
pub fn add(counter: &AtomicU64, amount: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
}

/// Raises a maximum whose only writer is the caller to at least `value`.
pub fn raise(maximum: &AtomicU64, value: u64) {
    if value > maximum.load(Ordering::Relaxed) {
        maximum.store(value, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorded_wait_is_counted_and_the_longest_kept() {
        let report = VcpuReport::new();
        for wait in [5, 900, 30] {
            report.record_wait(wait);
        }
        assert_eq!(report.longest_wait.load(Ordering::Relaxed), 900);
        assert_eq!(report.waits.iter().map(|n| n.load(Ordering::Relaxed)).sum::<u32>(), 3);
    }

    #[test]
    fn milestones_read_back_from_their_codes() {
        for milestone in [Milestone::AllUp, Milestone::WindowOpens, Milestone::WindowCloses] {
            assert_eq!(Milestone::from_code(milestone as u8), Some(milestone));
        }
        assert_eq!(Milestone::from_code(0), None);
    }
}
