//! Crashes: an exception or a panic is reported, and ends the run. The guest never hangs.

use core::panic::PanicInfo;
use core::sync::atomic::Ordering;

use protocol::payload::report::VECTOR_PANIC;

use super::entry::{REPORT, vcpu_of_stack};
use super::ports::{self, print_line};

/// Exit status of a payload that crashed.
pub(super) const STATUS_CRASHED: u8 = 3;

/// States of the crash structure: claimed by a vCPU, and complete.
const CLAIMED: u32 = 1;
const COMPLETE: u32 = 2;

/// Vector of the page fault.
const PAGE_FAULT: u64 = 14;

/// Reports an unexpected exception. CPL 0 enters it at CPL 3, at the top of the vCPU's own stack.
pub(super) extern "C" fn crashed(vector: u64, error: u64, rip: u64, address: u64, vcpu: u64) -> ! {
    let crash = &REPORT.header.crash;
    let low = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    if crash.state.compare_exchange(0, CLAIMED, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
        crash.vcpu.store(low(vcpu), Ordering::Relaxed);
        crash.vector.store(low(vector), Ordering::Relaxed);
        crash.error.store(error, Ordering::Relaxed);
        crash.rip.store(rip, Ordering::Relaxed);
        crash.address.store(if vector == PAGE_FAULT { address } else { 0 }, Ordering::Relaxed);
        crash.state.store(COMPLETE, Ordering::Release);
    }
    let name = name_of(vector);
    print_line!("vCPU {vcpu}: exception {vector} ({name}) at rip {rip:#x}, error code {error:#x}");
    ports::exit(STATUS_CRASHED)
}

fn name_of(vector: u64) -> &'static str {
    match vector {
        0 => "division by zero",
        1 => "debug",
        2 => "non-maskable interrupt",
        6 => "undefined instruction",
        7 => "no floating point",
        8 => "double fault",
        10 => "invalid TSS",
        11 => "segment not present",
        12 => "stack fault",
        13 => "general protection",
        PAGE_FAULT => "page fault",
        16 => "floating point",
        17 => "alignment",
        18 => "machine check",
        19 => "SIMD floating point",
        _ => "unexpected",
    }
}

#[panic_handler]
fn panicked(info: &PanicInfo<'_>) -> ! {
    let vcpu = vcpu_of_stack().map_or(u32::MAX, |vcpu| vcpu.apic_id().into());
    let crash = &REPORT.header.crash;
    if crash.state.compare_exchange(0, CLAIMED, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
        crash.vcpu.store(vcpu, Ordering::Relaxed);
        crash.vector.store(VECTOR_PANIC, Ordering::Relaxed);
        crash.line.store(info.location().map_or(0, core::panic::Location::line), Ordering::Relaxed);
        crash.state.store(COMPLETE, Ordering::Release);
    }
    print_line!("vCPU {vcpu}: {info}");
    ports::exit(STATUS_CRASHED)
}
