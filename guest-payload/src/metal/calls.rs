//! Calls: from CPL 3 to CPL 0 and back, by `int3`.
//!
//! It is the one way that works alike under VMX, SVM, PVM and TCG: `syscall` and hypercalls do not where CPL 0 is
//! emulated. A call costs some microseconds there, so there are few: what can be done at CPL 3 is done there.

#![expect(unsafe_code, reason = "int3 is no Rust call")]

use core::arch::asm;
use core::sync::atomic::AtomicU32;

/// RAX of a call: halt.
const CALL_HALT: u32 = 0;
/// RAX of a call: RDMSR.
pub(super) const CALL_READ_MSR: u32 = 1;
/// RAX of a call: WRMSR.
pub(super) const CALL_WRITE_MSR: u32 = 2;
/// RAX of a call: CPUID.
pub(super) const CALL_CPUID: u32 = 3;
/// RAX of a call: start the local APIC's timer, and halt.
pub(super) const CALL_NAP: u32 = 4;
/// RAX of a call: triple fault.
const CALL_SHUT_DOWN: u32 = 5;

/// The access raised #GP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Faulted;

/// Halts until the next interrupt, unless `word` is not `value`. The test and the halt are one.
pub(crate) fn halt_while(word: &AtomicU32, value: u32) {
    // SAFETY: the call reads the word, halts, and changes no register; interrupts that it lets in change none either.
    unsafe { asm!("int3", in("eax") CALL_HALT, in("rdi") word.as_ptr(), in("esi") value) };
}

/// Halts until the next interrupt, which the local APIC's timer sends after `ticks` at the latest.
///
/// The timer is started with interrupts off: at CPL 3 it might fire, and be gone, before we halt.
pub(super) fn nap(ticks: u32) {
    // SAFETY: the call changes RAX; interrupts that it lets in change no register.
    unsafe { asm!("int3", inlateout("eax") CALL_NAP => _, in("edi") ticks) };
}

/// RDMSR.
pub(crate) fn read_msr(index: u32) -> Result<u64, Faulted> {
    let (value, faulted): (u64, u64);
    // SAFETY: the call changes RAX, RCX and RDX; an MSR that does not exist faults, and the call goes on behind it.
    unsafe {
        asm!("int3", inlateout("rax") u64::from(CALL_READ_MSR) => value, in("edi") index,
            lateout("rdx") faulted, lateout("rcx") _);
    }
    if faulted == 0 { Ok(value) } else { Err(Faulted) }
}

/// WRMSR. What it does to the machine is the caller's concern; here it is only ever the steal-time MSR.
pub(crate) fn write_msr(index: u32, value: u64) -> Result<(), Faulted> {
    let faulted: u64;
    // SAFETY: the call changes RAX, RCX and RDX; a value that is refused faults, and the call goes on behind it.
    unsafe {
        asm!("int3", inlateout("rax") u64::from(CALL_WRITE_MSR) => _, in("edi") index, in("rsi") value,
            lateout("rdx") faulted, lateout("rcx") _);
    }
    if faulted == 0 { Ok(()) } else { Err(Faulted) }
}

/// Triple faults: the end on a machine that has no other.
pub(crate) fn shut_down() -> ! {
    // SAFETY: the call does not return.
    unsafe { asm!("int3", in("eax") CALL_SHUT_DOWN, options(noreturn)) };
}

/// What CPUID says at CPL 0.
///
/// At CPL 3 it says what the host's processor says, where CPL 3 runs natively under an emulated CPL 0.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cpuid {
    pub(crate) eax: u32,
    pub(crate) ebx: u32,
    pub(crate) ecx: u32,
    pub(crate) edx: u32,
}

/// CPUID.
pub(crate) fn cpuid(leaf: u32) -> Cpuid {
    let (eax, ebx, ecx, edx): (u32, u32, u32, u32);
    // SAFETY: the call changes RAX, RCX, RDX and R8, which has what CPUID puts into RBX.
    unsafe {
        asm!("int3", inlateout("eax") CALL_CPUID => eax, in("edi") leaf, in("esi") 0,
            lateout("r8d") ebx, lateout("ecx") ecx, lateout("edx") edx);
    }
    Cpuid { eax, ebx, ecx, edx }
}
