//! The frame of every job: all vCPUs start together, measure one window, and the last one ends the
//! run.

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use guest_payload::steal_time::record_of;
use protocol::VcpuId;
use protocol::payload::params::Workload;
use protocol::payload::report::{Milestone, VcpuReport};

use super::report;
use crate::machine::Machine;
use crate::metal::entry::REPORT;
use crate::metal::{calls, clock, hints, lapic, ports};

/// 1 once all vCPUs are up and the times of the window are set.
static STARTED: AtomicU32 = AtomicU32::new(0);

/// Number of vCPUs that have finished.
static FINISHED: AtomicUsize = AtomicUsize::new(0);

/// Most marks of one milestone by one vCPU.
const MARKS: usize = 16;

/// The measured window, in cycles of the clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) opens: u64,
    pub(crate) closes: u64,
}

impl Window {
    /// Returns whether the window has closed at time `now`, or the monitor has closed it early.
    #[inline]
    pub(crate) fn is_over(self, now: u64) -> bool {
        now >= self.closes || REPORT.header.close_now.load(Ordering::Relaxed) != 0
    }
}

/// The part of one vCPU in a job.
#[derive(Clone, Copy)]
pub(crate) struct Part {
    pub(crate) machine: Machine,
    pub(crate) workload: Workload,
    pub(crate) window: Window,
    pub(crate) report: &'static VcpuReport,
}

impl Part {
    /// Waits until all vCPUs are up. The last one sets the times of the window.
    pub(crate) fn join(machine: Machine, workload: Workload) -> Self {
        let window = arrive(machine, workload);
        Self { machine, workload, window, report: &REPORT.vcpus[machine.vcpu.id.index()] }
    }

    /// Stores a heartbeat, and returns the time (cycles).
    pub(crate) fn heartbeat(&self) -> u64 {
        let now = clock::now();
        self.report.beat.store(now, Ordering::Release);
        now
    }

    /// Spins until the window opens, then opens it for this vCPU.
    pub(crate) fn spin_until_open(&self) {
        while clock::now() < self.window.opens && !self.window.is_over(clock::now()) {
            core::hint::spin_loop();
        }
        self.open();
    }

    /// Opens the window for this vCPU, and marks it. Steal is read at the same moment.
    ///
    /// The caller must hold no lock: the mark exits to the monitor.
    pub(crate) fn open(&self) {
        pass(Milestone::WindowOpens);
        self.report.steal_at_open.store(self.mark(Milestone::WindowOpens), Ordering::Relaxed);
    }

    /// Closes the window for this vCPU, perhaps early, and marks it.
    ///
    /// The caller must hold no lock: the mark exits to the monitor.
    pub(crate) fn close(&self) {
        let now = clock::now();
        if pass(Milestone::WindowCloses) && now < self.window.closes {
            REPORT.header.window_closes.store(now, Ordering::Relaxed);
        }
        self.report.steal_at_close.store(self.mark(Milestone::WindowCloses), Ordering::Relaxed);
    }

    /// Marks `milestone`, and returns the steal at that moment (ns).
    ///
    /// The host reads its clocks at the mark. A wait between the mark and the reading of steal would
    /// belong to one of them only. So both are repeated until steal has not grown.
    fn mark(&self, milestone: Milestone) -> u64 {
        let mut steal_ns = self.steal_ns();
        for _ in 0..MARKS {
            ports::mark(milestone);
            let before_ns = core::mem::replace(&mut steal_ns, self.steal_ns());
            if steal_ns == before_ns {
                break;
            }
        }
        steal_ns
    }

    fn steal_ns(&self) -> u64 {
        record_of(self.machine.vcpu.id).steal_ns().unwrap_or(0)
    }

    /// Ends the part of this vCPU. The last vCPU to finish calls `verify`, prints the report if no
    /// monitor reads it, and ends the run.
    pub(crate) fn finish(self, verify: fn(Self)) -> ! {
        if FINISHED.fetch_add(1, Ordering::AcqRel) + 1 < self.machine.vcpus {
            hints::halting(self.machine.vcpu.id);
            calls::halt_forever();
        }
        verify(self);
        report::print(self.machine, self.workload);
        ports::reset()
    }
}

fn arrive(machine: Machine, workload: Workload) -> Window {
    let header = &REPORT.header;
    if header.vcpus_up.fetch_add(1, Ordering::AcqRel) as usize + 1 == machine.vcpus {
        let cycles = |ms: u32| clock::cycles(u64::from(ms) * 1_000_000, machine.vcpu.khz);
        let opens = clock::now() + cycles(workload.warmup_ms);
        header.window_opens.store(opens, Ordering::Relaxed);
        header.window_closes.store(opens + cycles(workload.duration_ms), Ordering::Relaxed);
        pass(Milestone::AllUp);
        ports::mark(Milestone::AllUp);
        STARTED.store(1, Ordering::SeqCst);
        VcpuId::first(machine.vcpus).filter(|vcpu| *vcpu != machine.vcpu.id).for_each(lapic::kick);
    }
    while STARTED.load(Ordering::Acquire) == 0 {
        calls::halt_while(&STARTED, 0);
    }
    Window {
        opens: header.window_opens.load(Ordering::Relaxed),
        closes: header.window_closes.load(Ordering::Relaxed),
    }
}

/// Passes a milestone. Returns whether this vCPU is the first to pass it.
fn pass(milestone: Milestone) -> bool {
    let code = milestone as u32;
    REPORT.header.milestone.fetch_max(code, Ordering::AcqRel) < code
}
