//! I/O ports that CPL 3 may use: COM1, reset and exit, milestones, and the PIT.

#![expect(unsafe_code, reason = "port instructions")]

use core::arch::asm;
use core::fmt;

use protocol::VcpuId;
use protocol::payload::machine::{
    COM1, DOORBELL_PORT, EXIT_PORT, I8042_COMMAND, I8042_RESET, MILESTONE_PORT,
};
use protocol::payload::report::Milestone;

use super::calls;

/// Channel 0 of the PIT, which interrupts.
pub(crate) const PIT_CHANNEL_0: u16 = 0x40;
/// Channel 2 of the PIT, whose output can be read.
pub(crate) const PIT_CHANNEL_2: u16 = 0x42;
/// Control word of the PIT.
pub(crate) const PIT_CONTROL: u16 = 0x43;
/// Gate and output of channel 2.
pub(crate) const SPEAKER: u16 = 0x61;

/// Writes a byte to a port.
pub(crate) fn write(port: u16, value: u8) {
    // SAFETY: the ports that callers pass belong to devices that do not access memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, preserves_flags)) };
}

/// Reads a byte from a port.
pub(crate) fn read(port: u16) -> u8 {
    let value;
    // SAFETY: as above.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nostack, preserves_flags)) };
    value
}

/// Exits to the monitor without any effect: reads COM1's line status.
pub(crate) fn exit_to_monitor() {
    let _ = read(COM1 + 5);
}

/// Asks the monitor to run `vcpu` in place of this vCPU, by the doorbell port.
pub(crate) fn yield_to(vcpu: VcpuId) {
    write(DOORBELL_PORT, vcpu.apic_id());
}

/// COM1 as a writer.
pub(crate) struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // The transmitter accepts a byte at any time on all machines that the payload runs on.
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

/// Marks a milestone for the monitor.
pub(crate) fn mark(milestone: Milestone) {
    write(MILESTONE_PORT, milestone as u8);
}

/// Ends the run successfully: by the reset line, or without one (QEMU's microvm) by a triple fault.
pub(crate) fn reset() -> ! {
    write(I8042_COMMAND, I8042_RESET);
    calls::shut_down()
}

/// Ends the run with `status`. Without a device at the exit port, resets the machine.
pub(crate) fn exit(status: u8) -> ! {
    write(EXIT_PORT, status);
    reset()
}
