//! The local APIC, through its page, which is open to CPL 3.

#![expect(unsafe_code, reason = "device memory")]

use protocol::VcpuId;
use protocol::machine::LAPIC;
use protocol::payload::TRAMPOLINE;

use super::calls;
use super::tables::{KICK, SPURIOUS};

/// End of interrupt.
pub(super) const EOI: u32 = 0xb0;
const SPURIOUS_VECTOR: u32 = 0xf0;
const COMMAND_LOW: u32 = 0x300;
const COMMAND_HIGH: u32 = 0x310;
const TIMER: u32 = 0x320;
/// Ticks until the timer fires; writing it starts the timer.
pub(super) const TIMER_INITIAL: u32 = 0x380;
const TIMER_DIVIDE: u32 = 0x3e0;

const ENABLE: u32 = 1 << 8;
const ASSERT: u32 = 1 << 14;
const INIT: u32 = 5 << 8;
const STARTUP: u32 = 6 << 8;
const ALL_BUT_SELF: u32 = 3 << 18;
const DIVIDE_BY_1: u32 = 0b1011;

fn write(register: u32, value: u32) {
    let register = core::ptr::with_exposed_provenance_mut::<u32>((LAPIC + register) as usize);
    // SAFETY: the page is mapped, uncached, and nothing but the local APIC answers there.
    unsafe { register.write_volatile(value) };
}

/// Switches this vCPU's local APIC on.
pub(crate) fn enable() {
    write(SPURIOUS_VECTOR, ENABLE | u32::from(SPURIOUS));
}

/// Sends `vcpu` an interrupt that does nothing but end its halt.
pub(crate) fn kick(vcpu: VcpuId) {
    write(COMMAND_HIGH, u32::from(vcpu.apic_id()) << 24);
    write(COMMAND_LOW, ASSERT | u32::from(KICK));
}

/// Resets all other vCPUs.
pub(crate) fn send_init() {
    write(COMMAND_LOW, ALL_BUT_SELF | ASSERT | INIT);
}

/// Lets all other vCPUs begin at the trampoline.
pub(crate) fn send_startup() {
    write(COMMAND_LOW, ALL_BUT_SELF | ASSERT | STARTUP | TRAMPOLINE >> 12);
}

/// Resets `vcpu`.
pub(crate) fn send_init_to(vcpu: VcpuId) {
    write(COMMAND_HIGH, u32::from(vcpu.apic_id()) << 24);
    write(COMMAND_LOW, ASSERT | INIT);
}

/// Lets `vcpu` begin at the trampoline.
pub(crate) fn send_startup_to(vcpu: VcpuId) {
    write(COMMAND_HIGH, u32::from(vcpu.apic_id()) << 24);
    write(COMMAND_LOW, ASSERT | STARTUP | TRAMPOLINE >> 12);
}

/// Halts this vCPU for `ticks` of its timer, or until somebody kicks it.
pub(crate) fn nap(ticks: u32) {
    write(TIMER_DIVIDE, DIVIDE_BY_1);
    write(TIMER, u32::from(KICK));
    calls::nap(ticks);
}
