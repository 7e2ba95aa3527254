//! Contend: all vCPUs want one lock, or one of a few.
//!
//! Each vCPU acquires, works in the section, releases, thinks, and repeats. The time stamp of a
//! grant decides whether it counts as in the window. A vCPU that holds a lock takes both time
//! stamps of its section: after the access that acquired the lock, and before the one that releases
//! it. So the sections of an exclusive lock do not overlap by the clock that all vCPUs share. Each
//! [`Section`] asserts that the lock excludes; at the end the entries that the sections have
//! counted are compared with those that the vCPUs have counted.
//!
//! Two ways to lose time to a preemption are told apart:
//!
//! - A **holder** was preempted if `steal` of its record grew between grant and release.
//! - The **next in line** was preempted if it was off its CPU while it spun, after the section was
//!   left and before it entered. Only a lock that chooses its next holder can wait for one.

use core::marker::PhantomData;
use core::sync::atomic::{AtomicU64, Ordering};

use guest_payload::check::Check;
use guest_payload::locks::{Lock, Mutex, Tas, Ticket};
use guest_payload::park::{LockCtx, ParkingLot};
use guest_payload::spin_wait::{WaitPolicy, WaitStats};
use guest_payload::steal_time::record_of;
use guest_payload::work::{Durations, Random, work};
use protocol::payload::hints::{Episode, EpisodeKind};
use protocol::payload::params::{self, MAX_LOCKS, Wait, Workload};
use protocol::payload::report::{add, raise};

use super::frame::Part;
use super::section::Section;
use crate::metal::entry::REPORT;
use crate::metal::vcpu::{LockCpu, Vcpu};
use crate::metal::{clock, hints};

/// Number of locks of each type.
pub(crate) const LOCKS: usize = MAX_LOCKS as usize;

static SECTIONS: [Section; LOCKS] = [const { Section::new() }; LOCKS];
static LOT: ParkingLot = ParkingLot::new();

/// Purposes of random numbers.
const THINK: u64 = 0;
const SECTION: u64 = 1;
const CHOICE: u64 = 2;

/// Contends for locks of one type, which the whole guest shares.
macro_rules! contend_for {
    ($check:ty, $part:expr, $lock:ty) => {{
        use $crate::jobs::contend::{Contended, LOCKS, run};
        static OF_THIS_TYPE: [$lock; LOCKS] = [const { <$lock>::new() }; LOCKS];
        run::<$check>($part, OF_THIS_TYPE.each_ref().map(|lock| lock as &dyn Contended<$check>))
    }};
}
pub(crate) use contend_for;

/// Contends for a lock of the core: tas, ticket or mutex.
pub(crate) fn run_core<K: Check>(part: Part) {
    match part.workload.lock {
        params::Lock::Tas => contend_for!(K, part, Tas),
        params::Lock::Ticket => contend_for!(K, part, Ticket),
        _ => contend_for!(K, part, Mutex),
    }
}

/// Returns the wait policy of the workload, in cycles of a clock of `khz`.
fn policy(workload: Workload, khz: u32) -> WaitPolicy {
    let cycles = |ns: u32| clock::cycles(ns.into(), khz);
    let every = workload.check_every;
    let backstop = if workload.backstop_ns == 0 { u64::MAX } else { cycles(workload.backstop_ns) };
    match workload.wait {
        Wait::Spin => WaitPolicy::Spin,
        Wait::Threshold => WaitPolicy::Threshold(cycles(workload.threshold_ns)),
        Wait::Cap => WaitPolicy::Cap(workload.cap_turns),
        Wait::Preempted => WaitPolicy::Preempted { every, twice: false, backstop },
        Wait::Twice => WaitPolicy::Preempted { every, twice: true, backstop },
        Wait::Yield => WaitPolicy::Yield { every },
    }
}

/// How a lock was acquired.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grant {
    /// [`Lock::HANDS_OVER`].
    hands_over: bool,
    /// Whether other readers may hold the lock too.
    is_shared: bool,
}

/// A lock of any type. The spin loops inside a lock are compiled for its type; the loop of this job
/// is compiled once for each check, which keeps the payload small and quick to load.
pub(crate) trait Contended<K> {
    /// Acquires the lock.
    fn acquire(&self, reads: bool, ctx: &mut LockCtx<'_, LockCpu<K>>) -> Grant;

    /// Releases the lock.
    fn release(&self, reads: bool, ctx: &mut LockCtx<'_, LockCpu<K>>);
}

impl<K: Check, L: Lock> Contended<K> for L {
    fn acquire(&self, reads: bool, ctx: &mut LockCtx<'_, LockCpu<K>>) -> Grant {
        let is_shared = reads && L::HAS_READERS;
        if is_shared {
            self.acquire_shared(ctx);
        } else {
            Lock::acquire(self, ctx);
        }
        Grant { hands_over: L::HANDS_OVER, is_shared }
    }

    fn release(&self, reads: bool, ctx: &mut LockCtx<'_, LockCpu<K>>) {
        if reads && L::HAS_READERS {
            self.release_shared(ctx);
        } else {
            Lock::release(self, ctx);
        }
    }
}

/// Contends for `locks` until the window closes, then writes the figures of this vCPU.
pub(crate) fn run<K: Check>(part: Part, locks: [&dyn Contended<K>; LOCKS]) {
    let Part { machine, workload, window, report } = part;
    let Vcpu { id, khz } = machine.vcpu;
    let cycles = |ns: u32| clock::cycles(ns.into(), khz);
    let mut ctx = LockCtx::new(LockCpu(machine.vcpu, PhantomData::<K>), policy(workload, khz), &LOT);
    let random = |purpose| Random::new(workload.seed, id, purpose);
    let mut thinks = Durations::new(random(THINK), cycles(workload.think_ns), workload.think_spread);
    let mut works = Durations::new(random(SECTION), cycles(workload.section_ns), workload.section_spread);
    let mut choice = random(CHOICE);
    let margin = cycles(workload.slice_margin_ns);
    // The statistics when the window opened.
    let mut before = None;
    loop {
        let length = works.next_duration();
        // Less than MAX_LOCKS.
        let number = u8::try_from(choice.below(workload.locks)).unwrap_or(0);
        let which = usize::from(number);
        let reads = choice.below(100) < workload.readers;
        let (Some(lock), Some(section)) = (locks.get(which), SECTIONS.get(which)) else { break };
        hints::wait_for_slice(id, margin);
        let wanted = clock::now();
        if window.is_over(wanted) {
            break;
        }
        if before.is_none() && wanted >= window.opens {
            part.open();
            report.wakes.iter().for_each(|bucket| bucket.store(0, Ordering::Relaxed));
            before = Some(ctx.stats);
        }
        hints::lock_wanted(id, wanted);
        let Grant { hands_over, is_shared } = lock.acquire(reads, &mut ctx);
        let granted = clock::now_after_loads();
        hints::lock_acquired(id);
        let counts = granted >= window.opens && !window.is_over(granted);
        if counts {
            record_grant(part, section, granted, ctx.stats, hands_over);
        } else if window.is_over(granted) {
            report.open_wait.store(window.closes.saturating_sub(wanted.max(window.opens)), Ordering::Relaxed);
        }
        let steal = steal_now(part);
        if reads {
            section.read(&ctx.cpu, length);
        } else {
            section.write(&ctx.cpu, length);
        }
        if counts && steal_now(part) != steal {
            add(&report.holder_preemptions, 1);
            add(&report.holder_stall, (clock::now() - granted).saturating_sub(length));
        }
        // The release makes the next holder, and then wakes waiters. Its time is not the section's.
        let released = clock::now();
        lock.release(reads, &mut ctx);
        hints::lock_released(id);
        let log = |kind, from, to| hints::log_episode(id, Episode { kind, lock: number, from, to });
        log(EpisodeKind::Waited, wanted, granted);
        log(if is_shared { EpisodeKind::Read } else { EpisodeKind::Held }, granted, released);
        add(&report.shared_ever, reads.into());
        add(&report.acquisitions_ever, 1);
        if counts {
            add(&report.acquisitions, 1);
            report.record_wait(granted.saturating_sub(wanted));
        }
        work(&ctx.cpu, thinks.next_duration());
    }
    if before.is_none() {
        // This vCPU waited all the time, and perhaps all others did.
        part.open();
    }
    part.close();
    write_stats(part, before.unwrap_or(ctx.stats), ctx.stats);
}

/// Returns steal of the own record (ns), or 0 while the host updates it.
fn steal_now(part: Part) -> u64 {
    record_of(part.machine.vcpu.id).try_steal_ns().unwrap_or(0)
}

/// Records a grant in the window: how long the lock had been idle, and whether that was because
/// this vCPU, the next in line, was preempted.
fn record_grant(part: Part, section: &Section, granted: u64, stats: WaitStats, hands_over: bool) {
    let report = part.report;
    let left = section.left();
    // Count only the part of the gap that lies in the window.
    let last = left.max(part.window.opens);
    raise(&report.longest_gap, granted.saturating_sub(last));
    if hands_over && left != 0 && stats.back_at > last {
        add(&report.next_preemptions, 1);
        add(&report.next_stall, granted.saturating_sub(last));
    }
}

/// A counter of the statistics.
type Count = fn(&WaitStats) -> u64;

/// Writes what waiting has cost in the window.
fn write_stats(part: Part, before: WaitStats, after: WaitStats) {
    let report = part.report;
    let figures: [(&AtomicU64, Count); 14] = [
        (&report.spin_cycles, |stats| stats.spin_cycles),
        (&report.wasted_cycles, |stats| stats.wasted_cycles),
        (&report.halts, |stats| stats.halts),
        (&report.halt_cycles, |stats| stats.halt_cycles),
        (&report.spurious_wakes, |stats| stats.spurious_wakes),
        (&report.kicks, |stats| stats.kicks),
        (&report.kick_cycles, |stats| stats.kick_cycles),
        (&report.preempted_seen, |stats| stats.preempted_seen),
        (&report.yields, |stats| stats.yields),
        (&report.queue_exits, |stats| stats.queue_exits),
        (&report.steals, |stats| stats.steals),
        (&report.early_waits, |stats| stats.early_waits),
        (&report.unnamed, |stats| stats.unnamed),
        (&report.unnamed_cycles, |stats| stats.unnamed_cycles),
    ];
    for (place, figure) in figures {
        place.store(figure(&after) - figure(&before), Ordering::Relaxed);
    }
}

/// Verifies after the end that the locks excluded: the sections have counted as many entries as the
/// vCPUs.
pub(crate) fn verify(part: Part) {
    let vcpus = || REPORT.vcpus.iter().take(part.machine.vcpus);
    let acquisitions: u64 = vcpus().map(|vcpu| vcpu.acquisitions_ever.load(Ordering::Relaxed)).sum();
    let shared: u64 = vcpus().map(|vcpu| vcpu.shared_ever.load(Ordering::Relaxed)).sum();
    let written: u64 = SECTIONS.iter().map(Section::written).sum();
    REPORT.header.sections.store(written, Ordering::Relaxed);
    let exclusive = acquisitions - shared;
    assert!(written == exclusive, "{written} sections, but {exclusive} acquisitions");
}
