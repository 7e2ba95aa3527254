//! MSR: one vCPU tries the MSR with records of its own.
//!
//! Each record lies on a page of its own, between guards. There are more pages than vCPUs in a
//! guest of two, so a host that keeps one page per vCPU has to return one. A nap makes the host
//! write: the vCPU sleeps and wakes, and the host updates steal on entry.

use guest_payload::steal_time::Record;
use protocol::kvm::{MSR_RESERVED, MSR_STEAL_TIME, Registration};
use protocol::payload::conformance::Assertion;

use super::verdict::{expect, is_written_in_a_nap, nap};
use crate::machine::{self, Machine};
use crate::metal::calls::{self, Faulted};

/// A record within a page, between two guards.
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

    /// Returns the fill of this page's paddings. Neighbouring pages differ.
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

pub(super) fn run(machine: Machine) {
    expect(Assertion::FeatureOffered, machine::has_steal_time());
    if !machine::has_steal_time() {
        return;
    }
    expect(Assertion::StartsAtZero, read() == Ok(0));
    register(&FIRST);
    expect(Assertion::VersionGrows, is_updated(&FIRST.record));
    refuse_reserved_bits();
    keep_padding();
    move_about();
    keep_the_pages();
    leave_ram(machine);
    mend_odd_versions();
    wrap_around();
    stop_and_go_on();
}

/// Tries each reserved bit alone, and all together, with and without bit 0. Publication must
/// continue.
fn refuse_reserved_bits() {
    for reserved in (1..=5).map(|bit| 1 << bit).chain([MSR_RESERVED]) {
        for value in [FIRST.registration() | reserved, (FIRST.registration() & !1) | reserved] {
            expect(Assertion::ReservedBitsFault, write(value) == Err(Faulted));
            expect(Assertion::ReservedBitsFault, read() == Ok(FIRST.registration()));
        }
    }
    expect(Assertion::ReservedBitsFault, is_written_in_a_nap(&FIRST.record));
}

fn keep_padding() {
    FIRST.fill_guards();
    FIRST.record.fill_padding(FIRST.fill());
    expect(Assertion::OnlyTheWords, is_written_in_a_nap(&FIRST.record));
    expect(Assertion::OnlyTheWords, FIRST.record.padding_is(FIRST.fill()) && FIRST.record.flags() == 0);
    expect(Assertion::Isolated, FIRST.guards_are_filled());
}

fn move_about() {
    register(&SECOND);
    expect(Assertion::VersionGrows, is_updated(&SECOND.record));
    expect(Assertion::MoveLeavesTheOld, !is_written_in_a_nap(&FIRST.record));
    expect(Assertion::MoveLeavesTheOld, is_written_in_a_nap(&SECOND.record));
}

/// Checks that the rest of a record's page survives registration and move.
fn keep_the_pages() {
    let pages = [&FIRST, &SECOND, &THIRD];
    for page in pages {
        page.fill_guards();
    }
    register(&THIRD);
    expect(Assertion::Isolated, is_written_in_a_nap(&THIRD.record));
    for page in pages {
        expect(Assertion::Isolated, page.guards_are_filled());
    }
}

/// Tries the first page above RAM, the local APIC's, the last one below 4 GiB, and an address that
/// no processor can reach.
fn leave_ram(machine: Machine) {
    let last = 0xffff_ffff_ffff_ffc0;
    for gpa in [machine.end_of_memory.next_multiple_of(4096), 0xfee0_0000, 0xffff_ffc0, last] {
        let outside = Registration::At { gpa }.to_msr();
        expect(Assertion::OutsideRamIsSilent, write(outside) == Ok(()));
        expect(Assertion::OutsideRamIsSilent, read() == Ok(outside));
        expect(Assertion::OutsideRamIsSilent, !is_written_in_a_nap(&THIRD.record));
    }
}

fn mend_odd_versions() {
    for odd in [1, 7, u32::MAX] {
        FIRST.record.set_version(odd);
        register(&FIRST);
        let version = FIRST.record.version();
        expect(Assertion::OddIsMended, version.is_multiple_of(2) && version != odd.wrapping_sub(1));
    }
}

fn wrap_around() {
    FIRST.record.set_version(u32::MAX - 1);
    register(&FIRST);
    let version = FIRST.record.version();
    expect(Assertion::VersionGrows, version < 1000 && version.is_multiple_of(2));
    expect(Assertion::VersionGrows, is_written_in_a_nap(&FIRST.record));
}

/// Stops and restarts publication at one place. Steal must not decrease.
fn stop_and_go_on() {
    for _ in 0..4 {
        let steal = FIRST.record.steal_ns();
        let off = FIRST.registration() & !1;
        expect(Assertion::OffStops, write(off) == Ok(()) && read() == Ok(off));
        let before = FIRST.record.bytes();
        nap();
        expect(Assertion::OffStops, FIRST.record.bytes() == before);
        register(&FIRST);
        expect(Assertion::StealNeverBack, FIRST.record.steal_ns() >= steal);
        nap();
        expect(Assertion::StealNeverBack, FIRST.record.steal_ns() >= steal);
    }
    expect(Assertion::OffStops, write(0) == Ok(()) && read() == Ok(0));
    expect(Assertion::OffStops, !is_written_in_a_nap(&FIRST.record));
}

#[track_caller]
fn register(page: &Page) {
    expect(Assertion::ReadsBack, write(page.registration()) == Ok(()));
    expect(Assertion::ReadsBack, read() == Ok(page.registration()));
}

fn read() -> Result<u64, Faulted> {
    calls::read_msr(MSR_STEAL_TIME)
}

fn write(value: u64) -> Result<(), Faulted> {
    calls::write_msr(MSR_STEAL_TIME, value)
}

/// Returns whether the host has updated the record, and has finished.
fn is_updated(record: &Record) -> bool {
    record.version() != 0
        && record.version().is_multiple_of(2)
        && record.flags() == 0
        && record.preempted() == 0
}
