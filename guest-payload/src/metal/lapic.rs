//! The local APIC, through its page, which is open to CPL 3.

#![expect(unsafe_code, reason = "device memory")]

use protocol::VcpuId;
use protocol::payload::machine::LAPIC;
use protocol::payload::machine::TRAMPOLINE;

use super::calls;
use super::tables::{KICK, SPURIOUS};

/// End of interrupt.
pub(super) const EOI: u32 = 0xb0;
const SPURIOUS_VECTOR: u32 = 0xf0;
const COMMAND_LOW: u32 = 0x300;
const COMMAND_HIGH: u32 = 0x310;
const TIMER: u32 = 0x320;
/// Initial count of the timer (ticks). A write starts the timer.
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
    // SAFETY: the page is mapped uncached, and only the local APIC answers there.
    unsafe { register.write_volatile(value) };
}

/// Enables the local APIC of this vCPU.
pub(crate) fn enable() {
    write(SPURIOUS_VECTOR, ENABLE | u32::from(SPURIOUS));
}

/// Sends `vcpu` an interrupt whose only effect is to end a halt.
pub(crate) fn kick(vcpu: VcpuId) {
    write(COMMAND_HIGH, u32::from(vcpu.apic_id()) << 24);
    write(COMMAND_LOW, ASSERT | u32::from(KICK));
}

/// Sends INIT to all other vCPUs.
pub(crate) fn send_init() {
    write(COMMAND_LOW, ALL_BUT_SELF | ASSERT | INIT);
}

/// Sends SIPI to all other vCPUs: they begin at the trampoline.
pub(crate) fn send_startup() {
    write(COMMAND_LOW, ALL_BUT_SELF | ASSERT | STARTUP | TRAMPOLINE >> 12);
}

/// Sends INIT to `vcpu`.
pub(crate) fn send_init_to(vcpu: VcpuId) {
    write(COMMAND_HIGH, u32::from(vcpu.apic_id()) << 24);
    write(COMMAND_LOW, ASSERT | INIT);
}

/// Sends SIPI to `vcpu`: it begins at the trampoline.
pub(crate) fn send_startup_to(vcpu: VcpuId) {
    write(COMMAND_HIGH, u32::from(vcpu.apic_id()) << 24);
    write(COMMAND_LOW, ASSERT | STARTUP | TRAMPOLINE >> 12);
}

/// Halts this vCPU until its timer fires after `ticks`, or a kick arrives.
pub(crate) fn nap(ticks: u32) {
    write(TIMER_DIVIDE, DIVIDE_BY_1);
    write(TIMER, u32::from(KICK));
    calls::nap(ticks);
}
