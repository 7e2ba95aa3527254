//! The machine a guest finds: ports, interrupt lines and fixed addresses.
//!
//! Deliberately the least that a guest needs and that QEMU's machines show in the same places, so that one payload
//! runs under both.

/// COM1's first port (16550).
pub const COM1: u16 = 0x3f8;

/// COM1's interrupt line.
pub const COM1_IRQ: u32 = 4;

/// The i8042 keyboard controller's first port; its command port lies 4 above.
pub const I8042: u16 = 0x60;

/// The i8042's command port.
pub const I8042_COMMAND: u16 = 0x64;

/// The i8042 command that pulses the reset line. For our monitor: the guest ended well.
pub const I8042_RESET: u8 = 0xfe;

/// The exit port: the value written ends the run and becomes the exit status.
///
/// QEMU's `-device isa-debug-exit,iobase=0xf4,iosize=4` ends with twice the value plus one. It takes the three ports
/// behind it, too.
pub const EXIT_PORT: u16 = 0xf4;

/// The milestone port: a byte written here is a mark in time, [`crate::report::Milestone`] for our payload.
///
/// Nothing answers there under QEMU, and nothing needs to.
pub const MILESTONE_PORT: u16 = 0xf8;

/// The doorbell: a vCPU that writes another's number here offers it its own CPU, for a moment.
///
/// Nothing answers there under QEMU, and nothing needs to.
pub const DOORBELL_PORT: u16 = 0xf9;

/// Ports of the two 8259 interrupt controllers' mask registers.
pub const PIC_MASKS: [u16; 2] = [0x21, 0xa1];

/// The local APIC's page (xAPIC, its address after reset).
pub const LAPIC: u32 = 0xfee0_0000;

/// RAM ends here in the first MiB; the MP table begins.
pub const LOW_RAM_END: u64 = 0x9_fc00;

/// RAM goes on here.
pub const HIGH_RAM_START: u64 = 0x10_0000;

/// RAM leaves this gap free for the local APIC, the I/O APIC and whatever else lives below 4 GiB.
pub const MMIO_GAP: core::ops::Range<u64> = 0xc000_0000..0x1_0000_0000;
