//! What the payload leaves behind: its report memory.
//!
//! One header, and for each vCPU two pages of figures and one for [`crate::exchange`], at the address that [`crate::payload::Note`] names. Every field is an atomic
//! and has one writer, so that the monitor may read at any time, while the guest runs, without a lock. The monitor
//! believes nothing it reads here: it is guest memory. It writes two words itself, and what each vCPU is to hear, which say so.
//!
//! Times are in cycles of the guest's TSC unless the name says otherwise.

use core::mem::{align_of, size_of};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::MAX_VCPUS;
use crate::conformance::Findings;
use crate::exchange::Exchange;
use crate::histogram::{BUCKETS, bucket_of};
use crate::words::Check;

/// Marks in a run, written to [`crate::machine::MILESTONE_PORT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Milestone {
    /// All vCPUs are up; the warm-up begins.
    AllUp = 1,
    /// The measured window begins.
    WindowOpens = 2,
    /// The measured window is over.
    WindowCloses = 3,
}

impl Milestone {
    /// The mark that a guest meant by `code`.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::AllUp),
            2 => Some(Self::WindowOpens),
            3 => Some(Self::WindowCloses),
            _ => None,
        }
    }
}

/// A crash's vector when there was no exception but a Rust panic.
pub const VECTOR_PANIC: u32 = 0x100;

/// The whole report.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct Report {
    /// What holds for the whole guest.
    pub header: Header,
    /// Two pages per vCPU; those past the guest's last vCPU stay zero.
    pub vcpus: [VcpuReport; MAX_VCPUS],
    /// What each vCPU and its host tell each other.
    pub exchange: [Exchange; MAX_VCPUS],
}

/// What holds for the whole guest.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct Header {
    /// The monitor stores 1 before the first entry: it reads this memory, so COM1 need not tell the figures.
    pub has_reader: AtomicU32,
    /// The monitor stores 1 to have the measured window closed at once, and the job ended.
    pub close_now: AtomicU32,
    /// vCPUs that are up.
    pub vcpus_up: AtomicU32,
    /// The guest's TSC rate in kHz, as the payload was told or measured.
    pub tsc_khz: AtomicU32,
    /// How far the run is: the largest [`Milestone`] passed, 0 before the first.
    pub milestone: AtomicU32,
    /// Begin of the measured window; 0 until all vCPUs are up.
    pub window_opens: AtomicU64,
    /// End of the measured window; 0 until all vCPUs are up.
    pub window_closes: AtomicU64,
    /// Sections entered, in the whole run, counted inside the lock by a plain load and store.
    ///
    /// It equals the sum of [`VcpuReport::acquisitions_ever`] if and only if the lock excluded everybody.
    pub sections: AtomicU64,
    /// The first crash.
    pub crash: Crash,
    /// What [`crate::words::Job::Conformance`] found.
    pub findings: Findings,
    /// What each form of the check costs, in the order of [`Check::ALL`], and behind them no check at all, by
    /// [`crate::words::Job::Checks`].
    pub checks: [CheckCost; FORMS + 1],
}

/// How many forms of the check there are.
pub const FORMS: usize = Check::ALL.len();

/// What a form of the check costs. All in thousandths of a cycle, medians; 0 where it was not measured.
#[derive(Debug)]
#[repr(C)]
pub struct CheckCost {
    /// A call among others that do not wait for it.
    pub call: AtomicU64,
    /// A call whose argument is the answer of the one before.
    pub chain: AtomicU64,
    /// A turn of an owner's spinner around it, compiled alone.
    pub spin: AtomicU64,
    /// The same, compiled into a larger function.
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

/// How the payload crashed. All zero while it has not.
#[derive(Debug)]
#[repr(C)]
pub struct Crash {
    /// 1 once a vCPU has claimed the record, 2 when the fields below are complete.
    pub state: AtomicU32,
    /// The vCPU that crashed.
    pub vcpu: AtomicU32,
    /// The exception's vector, or [`VECTOR_PANIC`].
    pub vector: AtomicU32,
    /// Line of the panic; 0 for an exception.
    pub line: AtomicU32,
    /// The exception's error code; 0 where it has none.
    pub error: AtomicU64,
    /// Where it happened; 0 for a panic.
    pub rip: AtomicU64,
    /// The address that could not be accessed, for a page fault (CR2).
    pub address: AtomicU64,
}

/// One vCPU's figures. The vCPU alone writes them.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct VcpuReport {
    /// TSC at the payload's first instruction on this vCPU.
    pub first_instruction: AtomicU64,
    /// Acquisitions granted within the measured window.
    pub acquisitions: AtomicU64,
    /// Acquisitions granted in the whole run.
    pub acquisitions_ever: AtomicU64,
    /// Of these, to read only.
    pub shared_ever: AtomicU64,
    /// CPU time spent spinning for the lock, in the window.
    pub spin_cycles: AtomicU64,
    /// Times a waiter halted, in the window.
    pub halts: AtomicU64,
    /// Time from entering the halt to going on, in the window.
    pub halt_cycles: AtomicU64,
    /// Interrupts sent to wake a waiter, in the window.
    pub kicks: AtomicU64,
    /// CPU time that sending them took, in the window: what the record says was stolen meanwhile is not counted.
    pub kick_cycles: AtomicU64,
    /// Times a waiter saw the byte of the vCPU it waits for, in the window.
    pub preempted_seen: AtomicU64,
    /// Times a waiter left the queue of spinners, or lost its turn, in the window.
    pub queue_exits: AtomicU64,
    /// Of the time spent spinning, while the vCPU waited for was preempted, in the window: by samples.
    pub wasted_cycles: AtomicU64,
    /// Halts that ended although nobody had woken the vCPU, in the window.
    pub spurious_wakes: AtomicU64,
    /// Times a waiter offered its CPU to the vCPU that it waits for, in the window.
    pub yields: AtomicU64,
    /// Locks taken past others who were queueing for them, in the window.
    pub steals: AtomicU64,
    /// Times a waiter halted because its neighbour in the queue did not run, in the window.
    pub early_waits: AtomicU64,
    /// Times that this vCPU was off its CPU where no other could name it as the one to wait for, in the window.
    pub unnamed: AtomicU64,
    /// For how long, in the window.
    pub unnamed_cycles: AtomicU64,
    /// Sections in the window during which this vCPU was preempted, by its own record's steal.
    pub holder_preemptions: AtomicU64,
    /// How much longer than meant those sections took.
    pub holder_stall: AtomicU64,
    /// Times in the window that this vCPU was given the lock while it was off its CPU, spinning: it was next in line.
    pub next_preemptions: AtomicU64,
    /// How long the lock then waited for it.
    pub next_stall: AtomicU64,
    /// How long it had waited for the lock, without having been granted it, when the window closed.
    pub open_wait: AtomicU64,
    /// Longest wait for the lock, granted in the window.
    pub longest_wait: AtomicU64,
    /// Longest time that this vCPU, on being granted the lock, found no section to have ended, in the window.
    pub longest_gap: AtomicU64,
    /// Its last sign of life, by the clock, where [`crate::words::Job::Witness`] or a scene of
    /// [`crate::words::Job::Conformance`] asks for one.
    pub beat: AtomicU64,
    /// Samples taken of the own byte, by [`crate::words::Job::Watch`] and [`crate::words::Job::Conformance`].
    pub own_samples: AtomicU64,
    /// Of these, how often the own byte was set.
    pub own_set: AtomicU64,
    /// Samples taken of other vCPUs' bytes.
    pub other_samples: AtomicU64,
    /// Of these, how often the byte was set.
    pub other_set: AtomicU64,
    /// Steal of this vCPU's own record when the window opened (ns), as the guest reads it.
    pub steal_at_open: AtomicU64,
    /// Steal of this vCPU's own record when the window closed (ns).
    pub steal_at_close: AtomicU64,
    /// What it saw of the boot vCPU's byte, by [`crate::words::Job::Witness`].
    pub sight: Sight,
    /// Waits for the lock that were granted in the window, in cycles, by [`crate::histogram`] bucket; in
    /// [`crate::words::Scene::Spin`] and [`crate::words::Job::Witness`] from another vCPU's last sign of life to its byte
    /// seen set. In the latter the witness also writes the boot vCPU's: from its first sign of life to its byte seen clear.
    pub waits: [AtomicU32; BUCKETS],
    /// From the kick to the woken waiter running, in the window, in cycles, by [`crate::histogram`] bucket.
    pub wakes: [AtomicU32; BUCKETS],
}

/// What is added to a lag that may be less than 0. (A report in which nothing has happened is all 0, so that the payload's
/// file need not hold it.)
pub const LAG_BIAS: u64 = 1 << 63;

/// What a witness saw of another vCPU's byte. A witness is a vCPU that judges it by the other's signs of life alone.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Sight {
    /// Looks.
    pub looks: AtomicU64,
    /// How long it looked, absences left out.
    pub observed: AtomicU64,
    /// Times that the witness itself lost its CPU.
    pub absences: AtomicU64,
    /// The least time from a sign of life to the end of the look that found it, plus [`LAG_BIAS`]: less than that, or much
    /// more, where the two clocks differ. 0 where no sign was seen to be given.
    pub least_lag: AtomicU64,
    /// Times that the other stood still.
    pub stalls: AtomicU64,
    /// For how long, all told.
    pub stalled: AtomicU64,
    /// Of the stalls, how many the byte never told of.
    pub unmarked: AtomicU64,
    /// Times that the byte was set and cleared while the other ran on.
    pub falsely_set: AtomicU64,
    /// The byte was set, and the other ran.
    pub wrongly_set: Wrong,
    /// The byte was clear, and the other stood still.
    pub wrongly_clear: Wrong,
}

/// How wrong the byte was in one direction.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Wrong {
    /// All told.
    pub total: AtomicU64,
    /// The longest single stretch.
    pub longest: AtomicU64,
}

impl Wrong {
    const fn new() -> Self {
        Self { total: AtomicU64::new(0), longest: AtomicU64::new(0) }
    }
}

impl Sight {
    const fn new() -> Self {
        Self {
            looks: AtomicU64::new(0),
            observed: AtomicU64::new(0),
            absences: AtomicU64::new(0),
            least_lag: AtomicU64::new(0),
            stalls: AtomicU64::new(0),
            stalled: AtomicU64::new(0),
            unmarked: AtomicU64::new(0),
            falsely_set: AtomicU64::new(0),
            wrongly_set: Wrong::new(),
            wrongly_clear: Wrong::new(),
        }
    }
}

const _: () = {
    assert!(size_of::<Header>() == 4096 && align_of::<Header>() == 4096);
    assert!(size_of::<VcpuReport>() == 8192 && align_of::<VcpuReport>() == 4096);
};

impl Report {
    /// A report in which nothing has happened.
    pub const fn new() -> Self {
        Self {
            header: Header::new(),
            vcpus: [const { VcpuReport::new() }; MAX_VCPUS],
            exchange: [const { Exchange::new() }; MAX_VCPUS],
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
    /// Figures of a vCPU that has done nothing.
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
            sight: Sight::new(),
            waits: [const { AtomicU32::new(0) }; BUCKETS],
            wakes: [const { AtomicU32::new(0) }; BUCKETS],
        }
    }

    /// Counts one wait of `cycles`. Only the vCPU itself calls this.
    pub fn record_wait(&self, cycles: u64) {
        count(&self.waits, cycles);
        raise(&self.longest_wait, cycles);
    }

    /// Counts one wake-up that took `cycles`. Only the vCPU itself calls this.
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

/// Adds to a counter that has one writer, who is the caller: no locked instruction.
pub fn add(counter: &AtomicU64, amount: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
}

/// Raises a maximum that has one writer, who is the caller.
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
