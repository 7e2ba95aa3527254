//! Contend: all vCPUs want one lock.
//!
//! Each takes it, works in the section, lets it go, thinks, and again. Each grant is counted by its own time stamp: in the
//! window or not. That nobody else is in the section is asserted at its begin and its end, each time; and what a plain
//! counter in it has counted is compared at the end with what everybody counted for himself.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use guest_payload::locks::{Lock, Mutex, Tas, Ticket};
use guest_payload::park::{Lot, Me};
use guest_payload::patience::{Strategy, Tally};
use guest_payload::work::{ThinkTimes, work};
use protocol::report::{add, raise};
use protocol::words::{self, Wait};

use super::Part;
use crate::metal::clock;
use crate::metal::entry::REPORT;
use crate::metal::vcpu::Vcpu;

static TAS: Tas = Tas::new();
static TICKET: Ticket = Ticket::new();
static MUTEX: Mutex = Mutex::new();
static LOT: Lot = Lot::new();

/// Who is in the section: 0, or one more than the vCPU's index.
static OCCUPANT: AtomicU32 = AtomicU32::new(0);

/// When the last section ended (cycles). Written inside the lock.
static LAST_SECTION: AtomicU64 = AtomicU64::new(0);

pub(super) fn run(part: Part) {
    match part.workload.lock {
        words::Lock::Tas => contend(part, &TAS),
        words::Lock::Ticket => contend(part, &TICKET),
        words::Lock::Mutex => contend(part, &MUTEX),
    }
}

fn contend(part: Part, lock: &impl Lock) {
    let Part { machine, workload, window, report } = part;
    let cycles = |ns: u32| clock::cycles(ns.into(), machine.vcpu.khz);
    let threshold = cycles(workload.threshold_ns);
    let strategy = match workload.wait {
        Wait::Ignore => Strategy::Ignore,
        Wait::Threshold => Strategy::Threshold(threshold),
        Wait::Byte => Strategy::Byte { backstop: threshold },
    };
    let mut me = Me::new(machine.vcpu, strategy, &LOT);
    let mut thinks = ThinkTimes::new(workload.seed, machine.vcpu.id, cycles(workload.think_ns));
    let section = cycles(workload.section_ns);
    // What waiting had cost when the window opened.
    let mut before = None;
    loop {
        let wanted = clock::now();
        if window.is_over(wanted) {
            break;
        }
        if before.is_none() && wanted >= window.opens {
            part.open();
            before = Some(me.tally);
        }
        lock.acquire(&mut me);
        let granted = clock::now();
        let counts = granted >= window.opens && !window.is_over(granted);
        if counts {
            // A gap that began before the window is cut off at its begin.
            let last = LAST_SECTION.load(Ordering::Relaxed).max(window.opens);
            raise(&report.longest_gap, granted.saturating_sub(last));
        }
        occupy(machine.vcpu, section);
        lock.release(&mut me);
        add(&report.acquisitions_ever, 1);
        if counts {
            add(&report.acquisitions, 1);
            report.record_wait(granted.saturating_sub(wanted));
        }
        work(&machine.vcpu, thinks.next_time());
    }
    part.close();
    tell(part, before.unwrap_or(me.tally), me.tally);
}

/// The section: whoever is in it is alone.
fn occupy(vcpu: Vcpu, cycles: u64) {
    let name = u32::from(vcpu.id.apic_id()) + 1;
    assert!(OCCUPANT.load(Ordering::Relaxed) == 0, "the lock let two in");
    OCCUPANT.store(name, Ordering::Relaxed);
    work(&vcpu, cycles);
    add(&REPORT.header.sections, 1);
    assert!(OCCUPANT.load(Ordering::Relaxed) == name, "the lock let somebody else in");
    OCCUPANT.store(0, Ordering::Relaxed);
    LAST_SECTION.store(clock::now(), Ordering::Relaxed);
}

fn tell(part: Part, before: Tally, after: Tally) {
    let report = part.report;
    let figures = [
        (&report.spin_cycles, after.spin_cycles - before.spin_cycles),
        (&report.halts, after.halts - before.halts),
        (&report.halt_cycles, after.halt_cycles - before.halt_cycles),
        (&report.kicks, after.kicks - before.kicks),
        (&report.kick_cycles, after.kick_cycles - before.kick_cycles),
        (&report.preempted_seen, after.preempted_seen - before.preempted_seen),
        (&report.queue_exits, after.queue_exits - before.queue_exits),
    ];
    for (place, figure) in figures {
        place.store(figure, Ordering::Relaxed);
    }
}

/// After everybody has finished: the section's own count must be everybody's.
pub(super) fn check(part: Part) {
    let vcpus = REPORT.vcpus.iter().take(part.machine.vcpus);
    let acquisitions: u64 = vcpus.map(|vcpu| vcpu.acquisitions_ever.load(Ordering::Relaxed)).sum();
    let sections = REPORT.header.sections.load(Ordering::Relaxed);
    assert!(sections == acquisitions, "{sections} sections, but {acquisitions} acquisitions");
}
