//! Block: one vCPU watches a second that halts, and a third that exits to the monitor most of the
//! time.
//!
//! Neither is preempted by that: no other thread has taken its CPU.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use guest_payload::steal_time::record_of;
use protocol::VcpuId;
use protocol::payload::conformance::Assertion;

use super::verdict::judge;
use crate::jobs::frame::Part;
use crate::metal::{calls, clock, lapic, ports};

/// 1 once the halted vCPU must wake.
static IS_OVER: AtomicU32 = AtomicU32::new(0);

/// When the second vCPU was about to halt (cycles); 0 before that.
static HALTS_SINCE: AtomicU64 = AtomicU64::new(0);

/// Time that the host may take from the halt until the thread sleeps.
const FALLING_ASLEEP_NS: u64 = 20_000_000;

pub(super) fn run(part: Part) {
    match part.machine.vcpu.id.index() {
        0 => watch(part),
        1 => halt(part),
        _ => stay_in_the_monitor(part),
    }
}

fn halt(part: Part) {
    part.open();
    HALTS_SINCE.store(clock::now(), Ordering::Release);
    while IS_OVER.load(Ordering::Acquire) == 0 {
        calls::halt_while(&IS_OVER, 0);
    }
    part.close();
}

fn stay_in_the_monitor(part: Part) {
    part.open();
    let own = record_of(part.machine.vcpu.id);
    let (mut exits, mut set) = (0, 0);
    while !part.window.is_over(clock::now()) {
        ports::exit_to_monitor();
        exits += 1;
        set += u64::from(own.preempted() != 0);
    }
    part.close();
    judge(Assertion::OwnByteClear, exits, set == 0);
}

fn watch(part: Part) {
    let mut vcpus = VcpuId::first(part.machine.vcpus).skip(1);
    let (Some(halted), leaving) = (vcpus.next(), vcpus.next()) else { return };
    let halted = record_of(halted);
    part.open();
    let asleep = clock::cycles(FALLING_ASLEEP_NS, part.machine.vcpu.khz);
    let is_asleep = || {
        let since = HALTS_SINCE.load(Ordering::Acquire);
        since != 0 && clock::now().wrapping_sub(since) > asleep
    };
    while !is_asleep() && !part.window.is_over(clock::now()) {}
    let (began, steal) = (clock::now(), halted.steal_ns().unwrap_or(0));
    let (mut looks, mut set, mut leaving_set) = (0, 0, 0);
    while !part.window.is_over(clock::now()) {
        looks += 1;
        set += u64::from(halted.preempted() != 0);
        leaving_set += u64::from(leaving.is_some_and(|leaving| record_of(leaving).preempted() != 0));
    }
    part.close();
    let ended = clock::now();
    judge(Assertion::BlockedIsNotPreempted, looks, set == 0);
    // The host may wake the vCPU thread for its own reasons from time to time, and let it wait for
    // a CPU.
    let stolen = halted.steal_ns().unwrap_or(u64::MAX).saturating_sub(steal);
    let is_little = clock::cycles(stolen, part.machine.vcpu.khz) <= ended.wrapping_sub(began) / 10;
    judge(Assertion::HaltIsNoSteal, looks, is_little);
    // The monitor knows how many of these preemptions were real.
    part.report.other_samples.store(looks, Ordering::Relaxed);
    part.report.other_set.store(leaving_set, Ordering::Relaxed);
    IS_OVER.store(1, Ordering::Release);
    VcpuId::first(part.machine.vcpus).skip(1).for_each(lapic::kick);
}
