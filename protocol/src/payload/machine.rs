//! The machine: I/O ports, interrupt lines and fixed guest physical addresses.
//!
//! The machine has the devices that the payload needs and no more. They lie where QEMU's machines
//! have them, so that one payload runs under both.

/// First I/O port of COM1, a 16550 UART.
pub const COM1: u16 = 0x3f8;

/// Interrupt line of COM1.
pub const COM1_IRQ: u32 = 4;

/// First I/O port of the i8042 keyboard controller. Its command port lies 4 above.
pub const I8042: u16 = 0x60;

/// Command port of the i8042.
pub const I8042_COMMAND: u16 = 0x64;

/// The i8042 command that pulses the reset line. The monitor takes it as a successful end of the
/// guest.
pub const I8042_RESET: u8 = 0xfe;

/// The exit port. A write ends the run, and the value becomes the exit status.
///
/// QEMU's `-device isa-debug-exit,iobase=0xf4,iosize=4` exits with twice the value plus one. That
/// device also occupies the next three ports.
pub const EXIT_PORT: u16 = 0xf4;

/// The milestone port. A byte written here marks a moment of the run: a
/// [`super::report::Milestone`].
///
/// QEMU has no device there and ignores the write.
pub const MILESTONE_PORT: u16 = 0xf8;

/// The doorbell port. A vCPU writes the index of another vCPU to have the host run that one in its
/// place.
///
/// QEMU has no device there and ignores the write.
pub const DOORBELL_PORT: u16 = 0xf9;

/// I/O ports of the mask registers of the two 8259 interrupt controllers.
pub const PIC_MASKS: [u16; 2] = [0x21, 0xa1];

/// Address of the local APIC's page (xAPIC, as after reset).
pub const LAPIC: u32 = 0xfee0_0000;

/// Address of the I/O APIC's registers.
pub const IO_APIC: u32 = 0xfec0_0000;

/// End of RAM in the first MiB. The MP table follows.
pub const LOW_RAM_END: u64 = 0x9_fc00;

/// Begin of RAM above the first MiB.
pub const HIGH_RAM_START: u64 = 0x10_0000;

/// Addresses without RAM below 4 GiB, for the local APIC, the I/O APIC and other devices.
pub const MMIO_GAP: core::ops::Range<u64> = 0xc000_0000..0x1_0000_0000;

/// The payload's supervisor memory (GPA). Both ends are 2 MiB aligned.
///
/// It holds what only CPL 0 may access: CPL-0 code, descriptor tables, page tables and stacks. The
/// rest of the payload follows, and is open to CPL 3.
pub const SUPERVISOR: core::ops::Range<u64> = 0x20_0000..0x40_0000;

/// Begin (GPA) of the tables that the processor reads, within [`SUPERVISOR`]: page tables, IDT,
/// GDTs, TSSs.
pub const TABLES: u64 = SUPERVISOR.start + 0x1_0000;

/// Address of the real-mode code at which the payload's APs begin. The SIPI vector is this address
/// / 4096.
pub const TRAMPOLINE: u32 = 0x8000;
