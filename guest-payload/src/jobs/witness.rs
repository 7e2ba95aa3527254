//! Witness: the boot vCPU runs, leaves, halts and comes back, and the last vCPU judges its byte by that.
//!
//! With one vCPU there is no witness; then somebody else may look, from outside. Between the two, vCPUs halt.

use core::sync::atomic::Ordering;

use guest_payload::steal_time::record_of;
use guest_payload::witness::{AWAY, Limits, Witness, give_sign};
use protocol::VcpuId;

use super::{Part, idle};
use crate::metal::entry::REPORT;
use crate::metal::{clock, lapic, ports};

/// A turn of the vCPU that is watched: it spins, leaves the guest some times, spins, halts and is woken some times.
const SPIN_NS: u64 = 4_000_000;
const EXITS: u32 = 10;
const NAPS: u32 = 2;
/// In ticks of the local APIC's timer, which are nanoseconds at KVM's and QEMU's 1 GHz.
const NAP: u32 = 150_000;
const BETWEEN_NAPS_NS: u64 = 50_000;

/// Longer than what an interrupt takes that the guest handles, also where CPL 0 is emulated.
const STALL_NS: u64 = 50_000;
const HITCH_NS: u64 = 2_000;
const ABSENCE_NS: u64 = 20_000;

pub(super) fn run(part: Part) {
    match part.machine.vcpu.id.index() {
        0 => act(part),
        last if last + 1 == part.machine.vcpus => watch(part),
        _ => idle::run(part),
    }
}

fn act(part: Part) {
    let spin = |ns| {
        let until = clock::now() + clock::cycles(ns, part.machine.vcpu.khz);
        loop {
            let now = clock::now();
            give_sign(part.report, now);
            if now >= until || part.window.is_over(now) {
                break;
            }
        }
    };
    part.spin_until_open();
    while !part.window.is_over(clock::now()) {
        spin(SPIN_NS);
        give_sign(part.report, AWAY);
        for _ in 0..EXITS {
            ports::visit_the_monitor();
        }
        for _ in 0..NAPS {
            spin(BETWEEN_NAPS_NS);
            give_sign(part.report, AWAY);
            lapic::nap(NAP);
        }
    }
    give_sign(part.report, AWAY);
    part.close();
}

fn watch(part: Part) {
    let cycles = |ns| clock::cycles(ns, part.machine.vcpu.khz);
    let limits = Limits { stall: cycles(STALL_NS), hitch: cycles(HITCH_NS), absence: cycles(ABSENCE_NS) };
    let watched = &REPORT.vcpus[VcpuId::BOOT.index()];
    let record = record_of(VcpuId::BOOT);
    let mut witness = Witness::new(limits, part.report, watched);
    part.spin_until_open();
    loop {
        // In this order: what is seen was so at that time, or later.
        let now = clock::now_in_order();
        if part.window.is_over(now) {
            break;
        }
        let is_set = record.preempted() != 0;
        let sign = watched.beat.load(Ordering::Acquire);
        witness.look(now, is_set, sign, clock::now_in_order());
    }
    part.close();
}
