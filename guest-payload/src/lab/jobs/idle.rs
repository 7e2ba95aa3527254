//! Idle: halt until the window closes.
//!
//! The local APIC wakes each vCPU from time to time to read the clock. Without a timer of known
//! rate, this keeps time at the least cost.

use crate::jobs::frame::Part;
use crate::metal::{clock, lapic};

/// Interval of reading the clock, in ticks of the local APIC's timer: 1 ms at KVM's and QEMU's 1
/// GHz.
const NAP: u32 = 1_000_000;

pub(crate) fn run(part: Part) {
    // A timer that fires at once must end the nap too; a nap that missed it would never end.
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
