//! Mixed: a load with every kind of context switch, for judges outside the guest.
//!
//! The boot vCPU spins, exits to the monitor, halts and wakes, in turn. The last vCPU spins all the
//! time, so that the boot vCPU is preempted if both share a CPU. The vCPUs between them halt.

use super::idle;
use crate::jobs::frame::Part;
use crate::metal::{clock, lapic, ports};

/// One round of the boot vCPU: a long spin, exits, then naps with a short spin before each.
const SPIN_NS: u64 = 4_000_000;
const EXITS: u32 = 10;
const NAPS: u32 = 2;
/// In ticks of the local APIC's timer, which are nanoseconds at KVM's and QEMU's 1 GHz.
const NAP: u32 = 150_000;
const BETWEEN_NAPS_NS: u64 = 50_000;

pub(crate) fn run(part: Part) {
    match part.machine.vcpu.id.index() {
        0 => alternate(part),
        last if last + 1 == part.machine.vcpus => spin(part),
        _ => idle::run(part),
    }
}

fn alternate(part: Part) {
    let spin = |ns| {
        let until = clock::now() + clock::cycles(ns, part.machine.vcpu.khz);
        loop {
            let now = part.heartbeat();
            if now >= until || part.window.is_over(now) {
                break;
            }
        }
    };
    part.spin_until_open();
    while !part.window.is_over(clock::now()) {
        spin(SPIN_NS);
        for _ in 0..EXITS {
            ports::exit_to_monitor();
        }
        for _ in 0..NAPS {
            spin(BETWEEN_NAPS_NS);
            lapic::nap(NAP);
        }
    }
    part.close();
}

fn spin(part: Part) {
    part.spin_until_open();
    while !part.window.is_over(clock::now()) {
        core::hint::spin_loop();
    }
    part.close();
}
