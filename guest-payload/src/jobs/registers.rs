//! Registers: the rules of the MSR, tried from inside by one vCPU.
//!
//! Records of the job's own, each on a page of its own with a guard on both sides. There are more such pages than vCPUs
//! in a guest of two, so that a host that keeps a page for each vCPU has to give one back. A nap makes the host write:
//! the vCPU sleeps and wakes, and steal is brought up to date on the way in.

use core::sync::atomic::Ordering;

use guest_payload::steal_time::Record;
use protocol::report::RegisterRule;
use protocol::steal_time::{MSR_RESERVED, MSR_STEAL_TIME, Registration};

use crate::Machine;
use crate::metal::calls::{self, Faulted};
use crate::metal::entry::REPORT;
use crate::metal::lapic;

/// A record in the middle of a page, with guards.
#[repr(C, align(4096))]
struct Page {
    before: Record,
    record: Record,
    after: Record,
}

impl Page {
    const fn new() -> Self {
        Self { before: Record::new(), record: Record::new(), after: Record::new() }
    }

    /// What this page's paddings are filled with: no two pages in a row with the same.
    fn fill(&self) -> u8 {
        0xa5 ^ core::ptr::from_ref(self).addr().to_le_bytes()[1]
    }

    fn fill_guards(&self) {
        self.before.fill_padding(self.fill());
        self.after.fill_padding(self.fill());
    }

    fn guards_are_filled(&self) -> bool {
        [&self.before, &self.after].iter().all(|guard| guard.version() == 0 && guard.padding_is(self.fill()))
    }

    fn registration(&self) -> u64 {
        Registration::At { gpa: core::ptr::from_ref(&self.record).addr() as u64 }.to_msr()
    }
}

static FIRST: Page = Page::new();
static SECOND: Page = Page::new();
static THIRD: Page = Page::new();

/// In ticks of the local APIC's timer: a fifth of a millisecond.
const NAP: u32 = 200_000;

pub(super) fn run(machine: Machine) {
    try_rule(RegisterRule::Discovered, crate::has_steal_time);
    if !crate::has_steal_time() {
        return;
    }
    try_rule(RegisterRule::StartsAtZero, || read() == Ok(0));
    try_rule(RegisterRule::UpdatesBeforeEntry, || {
        write(FIRST.registration()) == Ok(()) && is_updated(&FIRST.record)
    });
    try_rule(RegisterRule::ReadsBack, || read() == Ok(FIRST.registration()));
    try_rule(RegisterRule::ReservedBitsFault, || {
        (1..=5).map(|bit| 1 << bit).chain([MSR_RESERVED]).all(|reserved| {
            let bare = write((FIRST.registration() & !1) | reserved);
            bare == Err(Faulted) && write(FIRST.registration() | reserved) == Err(Faulted)
        })
    });
    try_rule(RegisterRule::RefusedWriteKeepsValue, || {
        read() == Ok(FIRST.registration()) && is_written_in_a_nap(&FIRST.record)
    });
    try_rule(RegisterRule::PaddingIsKept, padding_is_kept);
    try_rule(RegisterRule::MoveLeavesTheOldRecord, || {
        write(SECOND.registration()) == Ok(())
            && is_updated(&SECOND.record)
            && !is_written_in_a_nap(&FIRST.record)
            && is_written_in_a_nap(&SECOND.record)
    });
    try_rule(RegisterRule::PageIsKept, || {
        let pages = [&FIRST, &SECOND, &THIRD];
        for page in pages {
            page.fill_guards();
        }
        write(THIRD.registration()) == Ok(())
            && is_written_in_a_nap(&THIRD.record)
            && pages.iter().all(|page| page.guards_are_filled())
    });
    try_rule(RegisterRule::OutsideRamIsSilent, || {
        let outside = Registration::At { gpa: machine.end_of_memory.next_multiple_of(4096) }.to_msr();
        write(outside) == Ok(()) && read() == Ok(outside) && !is_written_in_a_nap(&THIRD.record)
    });
    try_rule(RegisterRule::OddVersionIsMended, || {
        FIRST.record.set_version(7);
        write(FIRST.registration()) == Ok(()) && is_updated(&FIRST.record)
    });
    try_rule(RegisterRule::OffStopsPublication, || {
        let off = FIRST.registration() & !1;
        write(off) == Ok(()) && read() == Ok(off) && !is_written_in_a_nap(&FIRST.record)
    });
}

fn try_rule(rule: RegisterRule, holds: impl FnOnce() -> bool) {
    let header = &REPORT.header;
    header.rules_tried.fetch_or(rule.bit(), Ordering::Relaxed);
    if holds() {
        header.rules_held.fetch_or(rule.bit(), Ordering::Relaxed);
    }
}

fn read() -> Result<u64, Faulted> {
    calls::read_msr(MSR_STEAL_TIME)
}

fn write(value: u64) -> Result<(), Faulted> {
    calls::write_msr(MSR_STEAL_TIME, value)
}

/// The host has brought it up to date, and is not at it.
fn is_updated(record: &Record) -> bool {
    record.version() != 0
        && record.version().is_multiple_of(2)
        && record.flags() == 0
        && record.preempted() == 0
}

/// Whether the host writes the record while we sleep and wake a few times.
fn is_written_in_a_nap(record: &Record) -> bool {
    let before = record.version();
    for _ in 0..4 {
        lapic::nap(NAP);
    }
    record.version() != before
}

fn padding_is_kept() -> bool {
    FIRST.fill_guards();
    FIRST.record.fill_padding(FIRST.fill());
    is_written_in_a_nap(&FIRST.record)
        && FIRST.guards_are_filled()
        && FIRST.record.padding_is(FIRST.fill())
        && FIRST.record.flags() == 0
}
