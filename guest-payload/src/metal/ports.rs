//! Ports that CPL 3 may use: COM1, the ways to end, milestones, and the PIT for measuring the clock.

#![expect(unsafe_code, reason = "port instructions")]

use core::arch::asm;
use core::fmt;

use protocol::VcpuId;
use protocol::machine::{COM1, DOORBELL_PORT, EXIT_PORT, I8042_COMMAND, I8042_RESET, MILESTONE_PORT};
use protocol::report::Milestone;

use super::calls;

/// The PIT's channel 2, whose output can be read.
pub(crate) const PIT_CHANNEL_2: u16 = 0x42;
/// The PIT's control word.
pub(crate) const PIT_CONTROL: u16 = 0x43;
/// The gate and output of channel 2.
pub(crate) const SPEAKER: u16 = 0x61;

/// OUT of a byte.
pub(crate) fn write(port: u16, value: u8) {
    // SAFETY: the ports of this module's callers are devices without access to memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, preserves_flags)) };
}

/// IN of a byte.
pub(crate) fn read(port: u16) -> u8 {
    let value;
    // SAFETY: as above.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nostack, preserves_flags)) };
    value
}

/// Leaves the guest for its monitor, and does nothing there: a look at COM1's line status.
pub(crate) fn visit_the_monitor() {
    let _ = read(COM1 + 5);
}

/// Rings the doorbell for `vcpu`: the monitor may run it in our place for a moment.
pub(crate) fn yield_to(vcpu: VcpuId) {
    write(DOORBELL_PORT, vcpu.apic_id());
}

/// COM1, for `write!`.
pub(crate) struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // The transmitter of every machine that this runs on takes a byte at any time.
        text.bytes().for_each(|byte| write(COM1, byte));
        Ok(())
    }
}

/// Prints a line on COM1.
macro_rules! print_line {
    ($($argument:tt)*) => {{
        use core::fmt::Write as _;
        let _ = writeln!($crate::metal::ports::Console, $($argument)*);
    }};
}
pub(crate) use print_line;

/// Marks a moment for the monitor.
pub(crate) fn mark(milestone: Milestone) {
    write(MILESTONE_PORT, milestone as u8);
}

/// Ends the run well: by the reset line, or where there is none (QEMU's microvm), by a triple fault.
pub(crate) fn reset() -> ! {
    write(I8042_COMMAND, I8042_RESET);
    calls::shut_down()
}

/// Ends the run with `status`. Where nobody listens at the exit port, a reset is the next best.
pub(crate) fn exit(status: u8) -> ! {
    write(EXIT_PORT, status);
    reset()
}
