//! Idle: halt until the window closes.
//!
//! Each vCPU has its own local APIC wake it now and then to look at the clock: without a timer of known rate that is
//! the least that keeps time without spinning.

use super::Part;
use crate::metal::{clock, lapic};

/// Between two looks at the clock, in ticks of the local APIC's timer: a millisecond at KVM's and QEMU's 1 GHz.
const NAP: u32 = 1_000_000;

pub(super) fn run(part: Part) {
    // A nap whose timer fires at once must end like any other; one that missed its timer would be for ever.
    lapic::nap(1);
    nap_until(part.window.opens, part);
    part.open();
    nap_until(part.window.closes, part);
    part.close();
}

fn nap_until(time: u64, part: Part) {
    while clock::now() < time && !part.window.is_over(clock::now()) {
        lapic::nap(NAP);
    }
}
