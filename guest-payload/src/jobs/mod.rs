//! Jobs: what the vCPUs do, from the moment that all are up to the end.
//!
//! Every job has the same frame. Each vCPU arrives and halts; the last one to arrive sets the window's times and wakes the
//! others. Whoever first notices that the window opens or closes marks it for the monitor, which may also have it closed
//! before its time. The last one to finish checks what can be checked, tells the figures on COM1 if nobody reads them
//! from memory, and resets the machine.

mod checks;
mod conformance;
mod contend;
mod idle;
mod report;
mod section;
mod watch;
mod witness;

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use guest_payload::steal_time::record_of;
use protocol::VcpuId;
use protocol::report::{Milestone, VcpuReport};
use protocol::words::{Job, Workload};

use crate::Machine;
use crate::metal::entry::REPORT;
use crate::metal::{calls, clock, lapic, ports, tell};

/// 1 once all vCPUs are up and the window's times are set.
static UNDER_WAY: AtomicU32 = AtomicU32::new(0);

/// vCPUs that have finished.
static FINISHED: AtomicUsize = AtomicUsize::new(0);

/// Never anything but 0: who halts on it stays halted.
static NEVER: AtomicU32 = AtomicU32::new(0);

/// The window, in cycles of the clock.
#[derive(Clone, Copy, Debug)]
struct Window {
    opens: u64,
    closes: u64,
}

impl Window {
    /// Whether it is over, `now` or because the monitor wants it.
    #[inline]
    fn is_over(self, now: u64) -> bool {
        now >= self.closes || REPORT.header.close_now.load(Ordering::Relaxed) != 0
    }
}

/// One vCPU's part in a job.
#[derive(Clone, Copy)]
struct Part {
    machine: Machine,
    workload: Workload,
    window: Window,
    report: &'static VcpuReport,
}

/// Does the job, and ends the run.
pub(crate) fn run(machine: Machine, workload: Workload) -> ! {
    let is_boot = machine.vcpu.id == VcpuId::BOOT;
    match workload.job {
        Job::Reset if is_boot => ports::reset(),
        #[expect(clippy::panic, reason = "that is the job")]
        Job::Panic if is_boot => panic!("as asked"),
        Job::Fault if is_boot => undefined_instruction(),
        Job::Conformance => conformance::run(machine, workload),
        Job::Reset | Job::Panic | Job::Fault => sleep_for_ever(),
        Job::Contend | Job::Checks | Job::Watch | Job::Witness | Job::Idle => {}
    }
    crate::register(machine, workload);
    tell::begin(workload, machine.vcpu.khz);
    let part = Part::new(machine, workload, arrive(machine, workload));
    match workload.job {
        Job::Checks => checks::run(part),
        Job::Watch => watch::run(part),
        Job::Witness => witness::run(part),
        Job::Idle => idle::run(part),
        _ => contend::run(part),
    }
    finish(part)
}

/// Goes on with a vCPU that has come up once more, after another has reset it.
pub(crate) fn live_again() -> ! {
    conformance::init::second_life()
}

/// Halts, and stays halted.
pub(crate) fn sleep_for_ever() -> ! {
    loop {
        calls::halt_while(&NEVER, 0);
    }
}

/// Waits until all vCPUs are up. The last one sets the window.
fn arrive(machine: Machine, workload: Workload) -> Window {
    let header = &REPORT.header;
    if header.vcpus_up.fetch_add(1, Ordering::AcqRel) as usize + 1 == machine.vcpus {
        let cycles = |ms: u32| clock::cycles(u64::from(ms) * 1_000_000, machine.vcpu.khz);
        let opens = clock::now() + cycles(workload.warmup_ms);
        header.window_opens.store(opens, Ordering::Relaxed);
        header.window_closes.store(opens + cycles(workload.duration_ms), Ordering::Relaxed);
        pass(Milestone::AllUp);
        UNDER_WAY.store(1, Ordering::SeqCst);
        kick_others(machine);
    }
    while UNDER_WAY.load(Ordering::Acquire) == 0 {
        calls::halt_while(&UNDER_WAY, 0);
    }
    Window {
        opens: header.window_opens.load(Ordering::Relaxed),
        closes: header.window_closes.load(Ordering::Relaxed),
    }
}

/// Marks a milestone, if nobody has yet, and says whether we were first. Not to be called with a lock held: it may leave
/// the guest.
fn pass(milestone: Milestone) -> bool {
    let code = milestone as u32;
    let is_first = REPORT.header.milestone.fetch_max(code, Ordering::AcqRel) < code;
    if is_first {
        ports::mark(milestone);
    }
    is_first
}

fn kick_others(machine: Machine) {
    VcpuId::first(machine.vcpus).filter(|vcpu| *vcpu != machine.vcpu.id).for_each(lapic::kick);
}

impl Part {
    fn new(machine: Machine, workload: Workload, window: Window) -> Self {
        Self { machine, workload, window, report: &REPORT.vcpus[machine.vcpu.id.index()] }
    }

    /// Shows that this vCPU runs, and gives the time.
    fn report_life(&self) -> u64 {
        let now = clock::now();
        self.report.beat.store(now, Ordering::Release);
        now
    }

    /// Spins until the window opens for this vCPU.
    fn spin_until_open(&self) {
        while clock::now() < self.window.opens && !self.window.is_over(clock::now()) {
            core::hint::spin_loop();
        }
        self.open();
    }

    /// The window opens for this vCPU.
    fn open(&self) {
        pass(Milestone::WindowOpens);
        self.report.steal_at_open.store(self.steal(), Ordering::Relaxed);
    }

    /// The window closes for this vCPU, perhaps before its time.
    fn close(&self) {
        let now = clock::now();
        if pass(Milestone::WindowCloses) && now < self.window.closes {
            REPORT.header.window_closes.store(now, Ordering::Relaxed);
        }
        self.report.steal_at_close.store(self.steal(), Ordering::Relaxed);
    }

    fn steal(&self) -> u64 {
        record_of(self.machine.vcpu.id).steal_ns().unwrap_or(0)
    }
}

/// This vCPU is done. The last one ends the run.
fn finish(part: Part) -> ! {
    if FINISHED.fetch_add(1, Ordering::AcqRel) + 1 < part.machine.vcpus {
        tell::halts(part.machine.vcpu.id);
        sleep_for_ever();
    }
    if part.workload.job == Job::Contend {
        contend::check(part);
    }
    report::tell(part.machine, part.workload);
    ports::reset()
}

#[expect(unsafe_code, reason = "that is the job")]
fn undefined_instruction() -> ! {
    // SAFETY: it raises #UD, which ends the run.
    unsafe { core::arch::asm!("ud2", options(noreturn)) }
}
