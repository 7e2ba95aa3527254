//! INIT: one vCPU resets another that has a record, and starts it again.
//!
//! The other vCPU naps all the time, before and after its restart, so that the host has a reason to
//! write its record.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use guest_payload::steal_time::record_of;
use protocol::VcpuId;
use protocol::kvm::{MSR_STEAL_TIME, Registration};
use protocol::payload::conformance::Assertion;

use super::io_apic::Source;
use super::verdict::{NAP, expect};
use crate::machine::Machine;
use crate::metal::{calls, clock, lapic, smp};

/// Long enough for many naps.
const WHILE_NS: u64 = 20_000_000;

/// Longest time that any step may take.
const TIMEOUT_NS: u64 = 5_000_000_000;

/// Naps within which a new record is written.
const MAX_NAPS: u32 = 2_000;

/// Number of naps of the other vCPU.
static NAPS: AtomicU64 = AtomicU64::new(0);

/// Version of the other vCPU's record after INIT.
static VERSION: AtomicU32 = AtomicU32::new(0);

/// Progress of the other vCPU: 1 registered, 2 done after its restart.
static PROGRESS: AtomicU32 = AtomicU32::new(0);

/// Returns the vCPU that is reset.
pub(super) fn other() -> VcpuId {
    VcpuId::first(2).next_back().unwrap_or(VcpuId::BOOT)
}

/// The part of the boot vCPU. INIT comes from `source`, or from the boot vCPU's local APIC.
pub(super) fn run(machine: Machine, source: Option<Source>) {
    let other = other();
    let record = record_of(other);
    expect(Assertion::InitClears, wait_for(machine, || PROGRESS.load(Ordering::Acquire) == 1));
    let version = record.version();
    expect(Assertion::InitClears, wait_for(machine, || record.version() != version));

    match source {
        None => lapic::send_init_to(other),
        Some(source) => source.send_init_to(other),
    }
    // The vCPU has received INIT once its naps end.
    let is_asleep = || {
        let naps = NAPS.load(Ordering::Acquire);
        nap_for(machine, WHILE_NS);
        NAPS.load(Ordering::Acquire) == naps
    };
    expect(Assertion::InitClears, wait_for(machine, is_asleep));
    if let Some(source) = source {
        source.mask();
    }
    let before = record.bytes();
    nap_for(machine, WHILE_NS);
    expect(Assertion::InitClears, record.bytes() == before);
    VERSION.store(record.version(), Ordering::Release);

    smp::restart(machine.start_info, other);
    expect(Assertion::InitClears, wait_for(machine, || PROGRESS.load(Ordering::Acquire) == 2));
}

/// The part of the other vCPU until INIT ends it.
pub(super) fn before_restart() -> ! {
    register();
    PROGRESS.store(1, Ordering::Release);
    loop {
        nap();
    }
}

/// The part of the other vCPU after its restart, from the trampoline on.
pub(crate) fn after_restart() -> ! {
    let record = record_of(other());
    // Nap before any MSR access or other exit: the host must have cleared the MSR on its own.
    for _ in 0..50 {
        nap();
    }
    expect(Assertion::InitClears, record.version() == VERSION.load(Ordering::Acquire));
    expect(Assertion::InitClears, calls::read_msr(MSR_STEAL_TIME) == Ok(0));
    register();
    let version = record.version();
    // A publisher that leaves steal to the vCPU's thread does not update it after each nap
    let mut naps = 0..MAX_NAPS;
    while record.version() == version && naps.next().is_some() {
        nap();
    }
    expect(Assertion::InitClears, record.version() != version);
    PROGRESS.store(2, Ordering::Release);
    calls::halt_forever()
}

#[track_caller]
fn register() {
    let gpa = core::ptr::from_ref(record_of(other())).addr() as u64;
    let value = Registration::At { gpa }.to_msr();
    expect(Assertion::InitClears, calls::write_msr(MSR_STEAL_TIME, value) == Ok(()));
    expect(Assertion::InitClears, calls::read_msr(MSR_STEAL_TIME) == Ok(value));
}

/// Naps, and counts the nap.
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

/// Naps until `is` holds. Returns `false` after the time limit.
fn wait_for(machine: Machine, is: impl Fn() -> bool) -> bool {
    let began = clock::now();
    while !is() {
        if clock::now().wrapping_sub(began) > clock::cycles(TIMEOUT_NS, machine.vcpu.khz) {
            return false;
        }
        lapic::nap(NAP);
    }
    true
}
