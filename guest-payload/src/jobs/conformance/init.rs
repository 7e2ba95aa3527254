//! INIT: one vCPU resets another that has a record, and lets it begin anew.
//!
//! The other naps all the time, so that the host has a reason to write its record, now and in its second life.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use guest_payload::steal_time::record_of;
use protocol::VcpuId;
use protocol::conformance::Assertion;
use protocol::steal_time::{MSR_STEAL_TIME, Registration};

use super::{NAP, expect};
use crate::Machine;
use crate::jobs::sleep_for_ever;
use crate::metal::{calls, clock, lapic, smp};

/// Long enough for many naps.
const WHILE_NS: u64 = 20_000_000;

/// Nothing here takes longer.
const PATIENCE_NS: u64 = 5_000_000_000;

/// Naps of the other vCPU, in both of its lives.
static NAPS: AtomicU64 = AtomicU64::new(0);

/// The version of the other's record, once INIT has been taken.
static VERSION: AtomicU32 = AtomicU32::new(0);

/// How far the other has come: 1 registered, 2 done with its second life.
static PROGRESS: AtomicU32 = AtomicU32::new(0);

/// The vCPU that is reset.
pub(super) fn other() -> VcpuId {
    VcpuId::first(2).next_back().unwrap_or(VcpuId::BOOT)
}

/// The boot vCPU's part.
pub(super) fn run(machine: Machine) {
    let other = other();
    let record = record_of(other);
    expect(Assertion::InitClears, wait_for(machine, || PROGRESS.load(Ordering::Acquire) == 1));
    let version = record.version();
    expect(Assertion::InitClears, wait_for(machine, || record.version() != version));

    lapic::send_init_to(other);
    // It has taken it when it naps no more.
    let is_asleep = || {
        let naps = NAPS.load(Ordering::Acquire);
        nap_for(machine, WHILE_NS);
        NAPS.load(Ordering::Acquire) == naps
    };
    expect(Assertion::InitClears, wait_for(machine, is_asleep));
    let before = record.bytes();
    nap_for(machine, WHILE_NS);
    expect(Assertion::InitClears, record.bytes() == before);
    VERSION.store(record.version(), Ordering::Release);

    smp::start_again(machine.start_info, other);
    expect(Assertion::InitClears, wait_for(machine, || PROGRESS.load(Ordering::Acquire) == 2));
}

/// The other's first life, which INIT ends.
pub(super) fn first_life() -> ! {
    register();
    PROGRESS.store(1, Ordering::Release);
    loop {
        nap();
    }
}

/// The other's second life, from the trampoline on.
pub(in crate::jobs) fn second_life() -> ! {
    let record = record_of(other());
    // Before any access to the MSR, or another reason to leave the guest: nobody has had to be reminded.
    for _ in 0..50 {
        nap();
    }
    expect(Assertion::InitClears, record.version() == VERSION.load(Ordering::Acquire));
    expect(Assertion::InitClears, calls::read_msr(MSR_STEAL_TIME) == Ok(0));
    register();
    let version = record.version();
    for _ in 0..50 {
        nap();
    }
    expect(Assertion::InitClears, record.version() != version);
    PROGRESS.store(2, Ordering::Release);
    sleep_for_ever()
}

#[track_caller]
fn register() {
    let gpa = core::ptr::from_ref(record_of(other())).addr() as u64;
    let value = Registration::At { gpa }.to_msr();
    expect(Assertion::InitClears, calls::write_msr(MSR_STEAL_TIME, value) == Ok(()));
    expect(Assertion::InitClears, calls::read_msr(MSR_STEAL_TIME) == Ok(value));
}

/// The other's naps are counted.
fn nap() {
    lapic::nap(NAP);
    NAPS.fetch_add(1, Ordering::Release);
}

fn nap_for(machine: Machine, ns: u64) {
    let began = clock::now();
    while clock::now().wrapping_sub(began) < clock::cycles(ns, machine.vcpu.khz) {
        lapic::nap(NAP);
    }
}

/// Naps until it is so, or nobody would wait any longer.
fn wait_for(machine: Machine, is: impl Fn() -> bool) -> bool {
    let began = clock::now();
    while !is() {
        if clock::now().wrapping_sub(began) > clock::cycles(PATIENCE_NS, machine.vcpu.khz) {
            return false;
        }
        lapic::nap(NAP);
    }
    true
}
