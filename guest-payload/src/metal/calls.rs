//! Calls: from CPL 3 to CPL 0 and back, by `int3`.
//!
//! Only `int3` works alike under VMX, SVM, PVM and TCG: `syscall` and hypercalls do not where CPL 0
//! is emulated. A call takes some microseconds there, so the payload does at CPL 3 whatever can be
//! done at CPL 3.

#![expect(unsafe_code, reason = "int3 is no Rust call")]

use core::arch::asm;
use core::sync::atomic::AtomicU32;

/// Call number in RAX: halt.
const CALL_HALT: u32 = 0;
/// Call number: RDMSR.
pub(super) const CALL_READ_MSR: u32 = 1;
/// Call number: WRMSR.
pub(super) const CALL_WRITE_MSR: u32 = 2;
/// Call number: CPUID.
pub(super) const CALL_CPUID: u32 = 3;
/// Call number: start the local APIC's timer, and halt.
pub(super) const CALL_NAP: u32 = 4;
/// Call number: triple fault.
const CALL_SHUT_DOWN: u32 = 5;

/// The error of an access that raised #GP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Faulted;

/// Halts until the next interrupt, unless `word` is not `value`. Test and halt are atomic.
pub(crate) fn halt_while(word: &AtomicU32, value: u32) {
    // SAFETY: the call reads the word, halts, and preserves all registers, as do the interrupts
    // that it admits.
    unsafe { asm!("int3", in("eax") CALL_HALT, in("rdi") word.as_ptr(), in("esi") value) };
}

/// Halts until the next interrupt, or until the timer of the local APIC fires after `ticks`.
///
/// The call starts the timer with interrupts off. At CPL 3 the timer might fire before the halt.
pub(super) fn nap(ticks: u32) {
    // SAFETY: the call changes RAX only; the interrupts that it admits preserve all registers.
    unsafe { asm!("int3", inlateout("eax") CALL_NAP => _, in("edi") ticks) };
}

/// Halts and never returns.
pub(crate) fn halt_forever() -> ! {
    static ZERO: AtomicU32 = AtomicU32::new(0);
    loop {
        halt_while(&ZERO, 0);
    }
}

/// Reads an MSR.
pub(crate) fn read_msr(index: u32) -> Result<u64, Faulted> {
    let (value, faulted): (u64, u64);
    // SAFETY: the call changes RAX, RCX and RDX. If the MSR does not exist, the fault handler
    // returns behind the instruction.
    unsafe {
        asm!("int3", inlateout("rax") u64::from(CALL_READ_MSR) => value, in("edi") index,
            lateout("rdx") faulted, lateout("rcx") _);
    }
    if faulted == 0 { Ok(value) } else { Err(Faulted) }
}

/// Writes an MSR. The payload writes only the steal-time MSR, which cannot corrupt its state.
pub(crate) fn write_msr(index: u32, value: u64) -> Result<(), Faulted> {
    let faulted: u64;
    // SAFETY: the call changes RAX, RCX and RDX. If the value is refused, the fault handler returns
    // behind the instruction.
    unsafe {
        asm!("int3", inlateout("rax") u64::from(CALL_WRITE_MSR) => _, in("edi") index, in("rsi") value,
            lateout("rdx") faulted, lateout("rcx") _);
    }
    if faulted == 0 { Ok(()) } else { Err(Faulted) }
}

/// Causes a triple fault, which ends the run on a machine without a reset line.
pub(crate) fn shut_down() -> ! {
    // SAFETY: the call does not return.
    unsafe { asm!("int3", in("eax") CALL_SHUT_DOWN, options(noreturn)) };
}

/// The result of CPUID at CPL 0.
///
/// Where CPL 0 is emulated, CPUID at CPL 3 runs natively and returns the values of the host's
/// processor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cpuid {
    pub(crate) eax: u32,
    pub(crate) ebx: u32,
    pub(crate) ecx: u32,
    pub(crate) edx: u32,
}

/// Executes CPUID at CPL 0, subleaf 0.
pub(crate) fn cpuid(leaf: u32) -> Cpuid {
    let (eax, ebx, ecx, edx): (u32, u32, u32, u32);
    // SAFETY: the call changes RAX, RCX, RDX and R8. R8 holds what CPUID returns in RBX.
    unsafe {
        asm!("int3", inlateout("eax") CALL_CPUID => eax, in("edi") leaf, in("esi") 0,
            lateout("r8d") ebx, lateout("ecx") ecx, lateout("edx") edx);
    }
    Cpuid { eax, ebx, ecx, edx }
}
