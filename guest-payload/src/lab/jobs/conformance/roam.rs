//! Roam: a record that moves, between pages that are in use.
//!
//! The boot vCPU moves its record, and stops and restarts publication, on pages that all other
//! vCPUs write at the same time. There are more pages than a host keeps for records, so it has to
//! overlay the guest's pages and return them continuously. A lost write shows at the next one: each
//! word counts its writes.
//!
//! At the end the record lies in unusual places: within running code, in the page tables, at both
//! ends of RAM.

#![expect(unsafe_code, reason = "records at arbitrary addresses")]

use core::arch::global_asm;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use guest_payload::steal_time::Record;
use protocol::kvm::{MSR_STEAL_TIME, Registration, StealTime};
use protocol::payload::conformance::Assertion;

use super::verdict::{expect, is_written_in_a_nap, judge, nap};
use crate::jobs::frame::Part;
use crate::metal::calls;
use crate::metal::tables::PML4;

/// More pages than the host has overlays for a guest of a few vCPUs.
const PAGES: usize = 12;

/// Places for the boot vCPU's record on each page.
const PLACES: usize = 32;

/// Number of vCPUs that take part.
const MAX_PARTICIPANTS: usize = 9;

/// Fill of bytes that no vCPU writes.
const FILL: u8 = 0x99;

/// A page that all vCPUs use.
#[repr(C, align(4096))]
struct Page {
    /// The boot vCPU's record is one of these.
    places: [Record; PLACES],
    /// Each other vCPU counts its rounds here.
    words: [Words; MAX_PARTICIPANTS],
    /// Each other vCPU's record is one of these, on one of the pages.
    records: [Record; MAX_PARTICIPANTS],
    /// Bytes that no vCPU uses.
    guards: [Record; 64 - PLACES - 2 * MAX_PARTICIPANTS],
}

/// A cache line of counters.
#[repr(C, align(64))]
struct Words([AtomicU64; 8]);

impl Page {
    const fn new() -> Self {
        Self {
            places: [const { Record::new() }; PLACES],
            words: [const { Words([const { AtomicU64::new(0) }; 8]) }; MAX_PARTICIPANTS],
            records: [const { Record::new() }; MAX_PARTICIPANTS],
            guards: [const { Record::new() }; 64 - PLACES - 2 * MAX_PARTICIPANTS],
        }
    }
}

static POOL: [Page; PAGES] = [const { Page::new() }; PAGES];

/// Version of each place when the boot vCPU left it.
static LEFT_AT: [[AtomicU32; PLACES]; PAGES] = [const { [const { AtomicU32::new(0) }; PLACES] }; PAGES];

/// 1 once the moves are over.
static IS_OVER: AtomicU32 = AtomicU32::new(0);

global_asm!(
    ".pushsection .text.roam, \"ax\", @progbits",
    ".balign 4096",
    ".globl code_with_room",
    "code_with_room:",
    "leaq   1(%rdi), %rax",
    "ret",
    ".balign 4096",
    ".popsection",
    options(att_syntax)
);

unsafe extern "C" {
    /// Returns `number` + 1. The rest of its page is free.
    fn code_with_room(number: u64) -> u64;
}

/// Registers the records of the other vCPUs on the pages, before all vCPUs are up.
pub(super) fn prepare(index: usize) {
    if index == 0 {
        POOL.iter().flat_map(|page| &page.guards).for_each(|guard| guard.fill_padding(FILL));
    } else if index < MAX_PARTICIPANTS {
        register(&POOL[index % PAGES].records[index]);
    }
}

pub(super) fn run(part: Part) {
    match part.machine.vcpu.id.index() {
        0 => {
            part.open();
            move_about(part.workload.moves);
            settle_in_odd_places(part);
            IS_OVER.store(1, Ordering::Release);
            part.close();
        }
        index if index < MAX_PARTICIPANTS => write_all_the_while(part, index),
        _ => {}
    }
}

/// Writes this vCPU's words on every page, round after round, and counts those that a write was
/// lost to.
fn write_all_the_while(part: Part, index: usize) {
    let (mut round, mut lost) = (0_u64, 0_u64);
    while IS_OVER.load(Ordering::Acquire) == 0 || round == 0 {
        for word in POOL.iter().flat_map(|page| &page.words[index].0) {
            lost += u64::from(word.load(Ordering::Relaxed) != round);
            word.store(round + 1, Ordering::Relaxed);
        }
        round += 1;
    }
    judge(Assertion::Isolated, round, lost == 0);
    part.report.own_samples.store(round, Ordering::Relaxed);
}

/// Moves the record `moves` times, or stops and restarts publication.
fn move_about(moves: u32) {
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        usize::try_from(random % below as u64).unwrap_or(0)
    };
    let (mut page, mut place) = (0, 0);
    register(&POOL[page].places[place]);
    for turn in 0..moves {
        let (old_page, old_place) = (page, place);
        let old = &POOL[page].places[place];
        match turn % 4 {
            // Stop, and restart at the same place.
            3 => {
                expect(Assertion::OffStops, write(Registration::Off.to_msr()));
                let before = old.bytes();
                expect(Assertion::OffStops, runs_on() && old.bytes() == before);
            }
            // Move within the page.
            2 => place = next(PLACES),
            _ => (page, place) = (next(PAGES), next(PLACES)),
        }
        let new = &POOL[page].places[place];
        let version = new.version();
        register(new);
        // The host updates the record before the next instruction.
        expect(Assertion::MoveLeavesTheOld, new.version() != version && new.version().is_multiple_of(2));
        // The host must not write the old record any more, unless it returns there.
        LEFT_AT[old_page][old_place].store(old.version(), Ordering::Relaxed);
    }
    expect(Assertion::OffStops, write(Registration::Off.to_msr()));
    LEFT_AT[page][place].store(POOL[page].places[place].version(), Ordering::Relaxed);
    for (page, left_at) in POOL.iter().zip(&LEFT_AT) {
        for (record, version) in page.places.iter().zip(left_at) {
            expect(Assertion::MoveLeavesTheOld, record.version() == version.load(Ordering::Relaxed));
        }
        for guard in &page.guards {
            expect(Assertion::Isolated, guard.version() == 0 && guard.padding_is(FILL));
        }
    }
}

/// Puts the record within running code, into the page tables, and at both ends of RAM.
fn settle_in_odd_places(part: Part) {
    const ROOM: u64 = 1024;
    /// The page tables use only their first entry, and no address lies in the second half of the
    /// space.
    const UNUSED_ENTRIES: u64 = 0x800;
    let code = (code_with_room as *const ()).addr() as u64;
    let size = size_of::<Record>() as u64;
    for gpa in [code + ROOM, part.machine.end_of_ram - size, size] {
        let record = record_at(gpa);
        expect(Assertion::MoveLeavesTheOld, write(Registration::At { gpa }.to_msr()));
        expect(Assertion::MoveLeavesTheOld, runs_on() && is_written_in_a_nap(record));
        expect(Assertion::OffStops, write(Registration::Off.to_msr()) && runs_on());
        expect(Assertion::OffStops, !is_written_in_a_nap(record));
    }
    // CPL 3 cannot read what is written there, but the processor uses it.
    expect(Assertion::MoveLeavesTheOld, write(Registration::At { gpa: PML4 + UNUSED_ENTRIES }.to_msr()));
    nap();
    expect(Assertion::MoveLeavesTheOld, runs_on());
    expect(Assertion::OffStops, write(Registration::Off.to_msr()) && runs_on());
}

/// Returns whether code and memory are intact.
fn runs_on() -> bool {
    // SAFETY: the function takes and returns a number.
    let sum = (0..1000).fold(0, |sum, _| unsafe { code_with_room(sum) });
    sum == 1000 && POOL.iter().flat_map(|page| &page.guards).all(|guard| guard.padding_is(FILL))
}

/// Returns the record at an address of unused RAM.
fn record_at(gpa: u64) -> &'static Record {
    let place = core::ptr::with_exposed_provenance::<Record>(usize::try_from(gpa).unwrap_or(0));
    const { assert!(align_of::<Record>() == align_of::<StealTime>()) };
    // SAFETY: the address is 64-byte aligned RAM below 4 GiB, which is mapped. All bytes are a
    // valid record, and its fields are atomics.
    unsafe { &*place }
}

fn register(record: &Record) {
    let gpa = core::ptr::from_ref(record).addr() as u64;
    expect(Assertion::ReadsBack, write(Registration::At { gpa }.to_msr()));
}

fn write(value: u64) -> bool {
    calls::write_msr(MSR_STEAL_TIME, value).is_ok()
}
