//! Contend: all vCPUs want one lock, or one of a few.
//!
//! Each takes it, works in the section, lets it go, thinks, and again. Each grant is counted by its own time stamp: in the
//! window or not. That the lock excludes is asserted in each [`Section`], and what the sections have counted is compared at the
//! end with what everybody counted for himself.
//!
//! Two ways to lose a lock's time to a preemption are told apart. A *holder* was preempted if its record's steal grew between
//! its grant and its release. Whoever is *next in line* was preempted if it was off its CPU, in the midst of spinning, after the
//! section had been left and before it entered: only locks that choose their next holder can wait for one.

use core::marker::PhantomData;
use core::sync::atomic::{AtomicU64, Ordering};

use guest_payload::check::{Call, Check, Inline, Pointer, Save0, Save1, Save2, Thunk};
use guest_payload::locks::{
    Cull, Lock, Malthusian, Mcs, Mutex, OwnerQueue, Preemptable, PvQspin, PvState, PvTicket, Qspin, Rwsem,
    Tas, Ticket, Variant, Virt,
};
use guest_payload::park::{Lot, Me};
use guest_payload::patience::{Strategy, Tally};
use guest_payload::steal_time::record_of;
use guest_payload::work::{Draw, Times, work};
use protocol::exchange::EpisodeKind;
use protocol::report::{add, raise};
use protocol::words::{self, MAX_LOCKS, Wait, Workload};

use super::Part;
use super::section::Section;
use crate::metal::entry::REPORT;
use crate::metal::vcpu::{Checking, Vcpu};
use crate::metal::{clock, tell};

const LOCKS: usize = MAX_LOCKS as usize;

static SECTIONS: [Section; LOCKS] = [const { Section::new() }; LOCKS];
static LOT: Lot = Lot::new();

/// Purposes that numbers are drawn for.
const THINK: u64 = 0;
const SECTION: u64 = 1;
const CHOICE: u64 = 2;

pub(super) fn run(part: Part) {
    match part.workload.check {
        words::Check::Thunk => run_checking::<Thunk>(part),
        words::Check::Call => run_checking::<Call>(part),
        words::Check::Save2 => run_checking::<Save2>(part),
        words::Check::Save1 => run_checking::<Save1>(part),
        words::Check::Save0 => run_checking::<Save0>(part),
        words::Check::Inline => run_checking::<Inline>(part),
        words::Check::Pointer => run_checking::<Pointer>(part),
    }
}

/// Contends for locks of a type, of which there are some for the whole guest.
macro_rules! contend_for {
    ($check:ty, $part:expr, $lock:ty) => {{
        static OF_THIS_TYPE: [$lock; LOCKS] = [const { <$lock>::new() }; LOCKS];
        contend::<$check>($part, OF_THIS_TYPE.each_ref().map(|lock| lock as &dyn Contended<$check>))
    }};
}

fn run_checking<K: Check>(part: Part) {
    match part.workload.lock {
        words::Lock::Tas => contend_for!(K, part, Tas),
        words::Lock::Virt => contend_for!(K, part, Virt),
        words::Lock::Ticket => contend_for!(K, part, Ticket),
        words::Lock::Preemptable => contend_for!(K, part, Preemptable),
        words::Lock::PvTicket => contend_for!(K, part, PvTicket),
        words::Lock::Mcs => contend_for!(K, part, Mcs),
        words::Lock::Qspin => contend_for!(K, part, Qspin),
        words::Lock::PvqPlain => contend_for_pvq::<K>(part, Variant::Plain),
        words::Lock::PvqSteal => contend_for_pvq::<K>(part, Variant::Steal),
        words::Lock::PvqHybrid => contend_for_pvq::<K>(part, Variant::Hybrid),
        words::Lock::PvqState => contend_for_pvq::<K>(part, Variant::State),
        words::Lock::PvqByte => contend_for_pvq::<K>(part, Variant::Byte),
        words::Lock::Mutex => contend_for!(K, part, Mutex),
        words::Lock::Rwsem => contend_for!(K, part, Rwsem),
        words::Lock::OwnerQueue => contend_for!(K, part, OwnerQueue),
        words::Lock::Malthusian => contend_for!(K, part, Malthusian),
        words::Lock::Cull => contend_for!(K, part, Cull),
    }
}

fn contend_for_pvq<K: Check>(part: Part, variant: Variant) {
    static STATES: [PvState; LOCKS] = [const { PvState::new() }; LOCKS];
    let locks = STATES.each_ref().map(|state| PvQspin::new(state, variant));
    contend::<K>(part, locks.each_ref().map(|lock| lock as &dyn Contended<K>));
}

/// The workload's way to wait, in cycles of a clock of `khz`.
fn strategy(workload: Workload, khz: u32) -> Strategy {
    let cycles = |ns: u32| clock::cycles(ns.into(), khz);
    let every = workload.check_every;
    let backstop = if workload.backstop_ns == 0 { u64::MAX } else { cycles(workload.backstop_ns) };
    match workload.wait {
        Wait::Ignore => Strategy::Ignore,
        Wait::Threshold => Strategy::Threshold(cycles(workload.threshold_ns)),
        Wait::Cap => Strategy::Cap(workload.cap_turns),
        Wait::Byte => Strategy::Byte { every, twice: false, backstop },
        Wait::Twice => Strategy::Byte { every, twice: true, backstop },
        Wait::Yield => Strategy::Yield { every },
    }
}

/// A lock as this job sees it, whichever it is: its own loops know it by its type, ours need not. A payload with this one
/// for each lock and each form would be half as large again, and every guest has to load it.
trait Contended<K> {
    /// Takes it, and gives what [`Lock::HANDS_OVER`] says.
    fn acquire(&self, reads: bool, me: &mut Me<'_, Checking<K>>) -> bool;

    /// Lets it go.
    fn release(&self, reads: bool, me: &mut Me<'_, Checking<K>>);
}

impl<K: Check, L: Lock> Contended<K> for L {
    fn acquire(&self, reads: bool, me: &mut Me<'_, Checking<K>>) -> bool {
        if reads && L::SHARES {
            self.acquire_shared(me);
        } else {
            Lock::acquire(self, me);
        }
        L::HANDS_OVER
    }

    fn release(&self, reads: bool, me: &mut Me<'_, Checking<K>>) {
        if reads && L::SHARES {
            self.release_shared(me);
        } else {
            Lock::release(self, me);
        }
    }
}

fn contend<K: Check>(part: Part, locks: [&dyn Contended<K>; LOCKS]) {
    let Part { machine, workload, window, report } = part;
    let Vcpu { id, khz } = machine.vcpu;
    let cycles = |ns: u32| clock::cycles(ns.into(), khz);
    let mut me = Me::new(Checking(machine.vcpu, PhantomData::<K>), strategy(workload, khz), &LOT);
    let draw = |purpose| Draw::new(workload.seed, id, purpose);
    let mut thinks = Times::new(draw(THINK), cycles(workload.think_ns), workload.think_spread);
    let mut works = Times::new(draw(SECTION), cycles(workload.section_ns), workload.section_spread);
    let mut choice = draw(CHOICE);
    let margin = cycles(workload.slice_margin_ns);
    // What waiting had cost when the window opened.
    let mut before = None;
    loop {
        let length = works.next_time();
        let which = choice.below(workload.locks) as usize;
        let reads = choice.below(100) < workload.readers;
        let (Some(lock), Some(section)) = (locks.get(which), SECTIONS.get(which)) else { break };
        tell::wait_for_a_turn_of(id, margin);
        let wanted = clock::now();
        if window.is_over(wanted) {
            break;
        }
        if before.is_none() && wanted >= window.opens {
            part.open();
            report.wakes.iter().for_each(|bucket| bucket.store(0, Ordering::Relaxed));
            before = Some(me.tally);
        }
        tell::wants(id, wanted);
        let hands_over = lock.acquire(reads, &mut me);
        tell::has(id);
        let granted = clock::now();
        let counts = granted >= window.opens && !window.is_over(granted);
        if counts {
            note_grant(part, section, granted, me.tally, hands_over);
        } else if window.is_over(granted) {
            report.open_wait.store(window.closes.saturating_sub(wanted.max(window.opens)), Ordering::Relaxed);
        }
        let steal = steal_now(part);
        if reads {
            section.read(&me.cpu, length);
        } else {
            section.write(&me.cpu, length);
        }
        if counts && steal_now(part) != steal {
            add(&report.holder_preemptions, 1);
            add(&report.holder_stall, (clock::now() - granted).saturating_sub(length));
        }
        lock.release(reads, &mut me);
        tell::has_none(id);
        tell::episode(id, EpisodeKind::Waited, wanted, granted);
        tell::episode(id, EpisodeKind::Held, granted, clock::now());
        add(&report.shared_ever, reads.into());
        add(&report.acquisitions_ever, 1);
        if counts {
            add(&report.acquisitions, 1);
            report.record_wait(granted.saturating_sub(wanted));
        }
        work(&me.cpu, thinks.next_time());
    }
    if before.is_none() {
        // We have been waiting all the time, and perhaps everybody has.
        part.open();
    }
    part.close();
    tell(part, before.unwrap_or(me.tally), me.tally);
}

/// The own record's steal (ns), or what it was before, while the host is writing it.
fn steal_now(part: Part) -> u64 {
    record_of(part.machine.vcpu.id).try_steal_ns().unwrap_or(0)
}

/// A grant in the window: how long nobody had been through, and whether that was because we were off our CPU.
fn note_grant(part: Part, section: &Section, granted: u64, tally: Tally, hands_over: bool) {
    let report = part.report;
    let left = section.left();
    // A gap that began before the window is cut off at its begin.
    let last = left.max(part.window.opens);
    raise(&report.longest_gap, granted.saturating_sub(last));
    if hands_over && left != 0 && tally.back_at > last {
        add(&report.next_preemptions, 1);
        add(&report.next_stall, granted.saturating_sub(last));
    }
}

/// A counter of a tally.
type Count = fn(&Tally) -> u64;

fn tell(part: Part, before: Tally, after: Tally) {
    let report = part.report;
    let figures: [(&AtomicU64, Count); 14] = [
        (&report.spin_cycles, |tally| tally.spin_cycles),
        (&report.wasted_cycles, |tally| tally.wasted_cycles),
        (&report.halts, |tally| tally.halts),
        (&report.halt_cycles, |tally| tally.halt_cycles),
        (&report.spurious_wakes, |tally| tally.spurious_wakes),
        (&report.kicks, |tally| tally.kicks),
        (&report.kick_cycles, |tally| tally.kick_cycles),
        (&report.preempted_seen, |tally| tally.preempted_seen),
        (&report.yields, |tally| tally.yields),
        (&report.queue_exits, |tally| tally.queue_exits),
        (&report.steals, |tally| tally.steals),
        (&report.early_waits, |tally| tally.early_waits),
        (&report.unnamed, |tally| tally.unnamed),
        (&report.unnamed_cycles, |tally| tally.unnamed_cycles),
    ];
    for (place, figure) in figures {
        place.store(figure(&after) - figure(&before), Ordering::Relaxed);
    }
}

/// After everybody has finished: what the sections have counted must be what everybody has.
pub(super) fn check(part: Part) {
    let vcpus = || REPORT.vcpus.iter().take(part.machine.vcpus);
    let acquisitions: u64 = vcpus().map(|vcpu| vcpu.acquisitions_ever.load(Ordering::Relaxed)).sum();
    let shared: u64 = vcpus().map(|vcpu| vcpu.shared_ever.load(Ordering::Relaxed)).sum();
    let written: u64 = SECTIONS.iter().map(Section::written).sum();
    REPORT.header.sections.store(written, Ordering::Relaxed);
    let exclusive = acquisitions - shared;
    assert!(written == exclusive, "{written} sections, but {exclusive} acquisitions");
}
