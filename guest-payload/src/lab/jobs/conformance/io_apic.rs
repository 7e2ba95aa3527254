//! The I/O APIC, through its page, which is open to CPL 3, and two devices on its pins.

#![expect(unsafe_code, reason = "device memory")]

use protocol::VcpuId;
use protocol::payload::machine::{COM1, IO_APIC};

use crate::metal::ports::{self, PIT_CHANNEL_0, PIT_CONTROL};

/// Selects the register behind the window.
const SELECT: usize = 0x00;
const WINDOW: usize = 0x10;
/// Low half of the first pin's redirection entry. The high half follows it.
const ENTRIES: u32 = 0x10;

const INIT: u32 = 5 << 8;
const MASKED: u32 = 1 << 16;

/// Channel 0 of the PIT, low byte then high byte, one shot.
const PIT_ONE_SHOT: u8 = 0b0011_0000;
/// Interrupt enable register of COM1, and its bit for an empty transmitter.
const COM1_ENABLE: u16 = COM1 + 1;
const TRANSMITTER_EMPTY: u8 = 1 << 1;

/// A device whose interrupt line ends at the I/O APIC.
#[derive(Clone, Copy)]
pub(super) enum Source {
    /// The PIT, at pin 0 (KVM) or pin 2 (a PC).
    Pit,
    /// COM1, at pin 4.
    Com1,
}

impl Source {
    fn pins(self) -> &'static [u32] {
        match self {
            Self::Pit => &[0, 2],
            Self::Com1 => &[4],
        }
    }

    /// Lets the next interrupt of the device be an INIT for `vcpu`, and makes the device raise one.
    pub(super) fn send_init_to(self, vcpu: VcpuId) {
        for pin in self.pins() {
            set_entry(*pin, u32::from(vcpu.apic_id()) << 24, INIT);
        }
        match self {
            Self::Pit => {
                ports::write(PIT_CONTROL, PIT_ONE_SHOT);
                ports::write(PIT_CHANNEL_0, 0);
                ports::write(PIT_CHANNEL_0, 1);
            }
            Self::Com1 => {
                ports::write(COM1_ENABLE, TRANSMITTER_EMPTY);
                ports::write(COM1, b'\n');
            }
        }
    }

    /// Ends interrupts of the device.
    pub(super) fn mask(self) {
        for pin in self.pins() {
            set_entry(*pin, 0, MASKED);
        }
        if let Self::Com1 = self {
            ports::write(COM1_ENABLE, 0);
        }
    }
}

/// Sets the redirection entry of `pin`: edge-triggered, physical destination.
fn set_entry(pin: u32, high: u32, low: u32) {
    let index = ENTRIES + 2 * pin;
    set_register(index, MASKED);
    set_register(index + 1, high);
    set_register(index, low);
}

fn set_register(index: u32, value: u32) {
    write(SELECT, index);
    write(WINDOW, value);
}

fn write(offset: usize, value: u32) {
    let register = core::ptr::with_exposed_provenance_mut::<u32>(IO_APIC as usize + offset);
    // SAFETY: the page is mapped uncached, and only the I/O APIC answers there, or nothing.
    unsafe { register.write_volatile(value) };
}
