//! The forms of the check that Linux could have had.
//!
//! In February 2017 the kernel's mailing list asked how few registers the check can use, and what
//! it costs a caller to save them. Each form of that thread is here, and two that it could not
//! have:
//!
//! | form | what it is | registers lost |
//! |---|---|---|
//! | [`Thunk`] | the callee-save wrapper: eight registers saved around a function | `rax` |
//! | [`Call`] | a plain function, as in the patch | all that C allows |
//! | [`Save2`] | the mail's assembly: `rdi` and `rdx` saved, a sign extension | `rax` |
//! | [`Save1`] | the reply: displacement folded into the compare, `rdi` saved | `rax` |
//! | [`Save0`] | what Linux merged: the argument is a `long`, nothing saved | `rax` |
//! | [`Pointer`] | `Save0` through a pointer, as paravirtual calls before patching | `rax` |
//! | [`Inline`] | no call: what the thread wished that a compiler could do | one of any |
//!
//! All forms but [`Call`] and [`Inline`] are called by inline assembly that declares exactly these
//! losses. The code of each form begins on a cache line, so that placement does not decide
//! measurements.
//!
//! [`Save2`] keeps the mail's `movq $steal_time+16, %rax`, with a 32-bit immediate that is
//! sign-extended.
//!
//! [`Save0`]: crate::check::Save0

#![expect(unsafe_code, reason = "the forms are assembly, and so are their calls")]
#![expect(clippy::inline_always, reason = "the cost of a check is what it does to its caller's registers")]

use core::arch::global_asm;
use core::mem::offset_of;

use protocol::VcpuId;
use protocol::kvm::StealTime;
use protocol::payload::params;

use super::differential::{Convention, Form};
use crate::check::{Check, callee_save, check_save0};
use crate::steal_time::{PER_VCPU_OFFSET, RECORDS, Record};

global_asm!(
    ".macro begin_check name",
    ".pushsection .text.\\name, \"ax\", @progbits",
    ".globl \\name",
    ".type \\name, @function",
    ".balign 64",
    "\\name:",
    ".endm",
    ".macro end_check name",
    ".size \\name, . - \\name",
    ".popsection",
    ".endm",
    //
    "begin_check check_save1",
    "push   %rdi",
    "movslq %edi, %rdi",
    "movq   {per_vcpu_offset}(,%rdi,8), %rax",
    "cmpb   $0, {steal_time}+{preempted}(%rax)",
    "setne  %al",
    "pop    %rdi",
    "ret",
    "end_check check_save1",
    //
    "begin_check check_save2",
    "push   %rdi",
    "push   %rdx",
    "movslq %edi, %rdi",
    "movq   ${steal_time}+{preempted}, %rax",
    "movq   {per_vcpu_offset}(,%rdi,8), %rdx",
    "cmpb   $0, (%rdx,%rax)",
    "setne  %al",
    "pop    %rdx",
    "pop    %rdi",
    "ret",
    "end_check check_save2",
    // Saves what the C convention lets a function destroy, except rax, which holds the answer.
    "begin_check check_thunk",
    "push   %rcx",
    "push   %rdx",
    "push   %rsi",
    "push   %rdi",
    "push   %r8",
    "push   %r9",
    "push   %r10",
    "push   %r11",
    "call   {plain}",
    "pop    %r11",
    "pop    %r10",
    "pop    %r9",
    "pop    %r8",
    "pop    %rdi",
    "pop    %rsi",
    "pop    %rdx",
    "pop    %rcx",
    "ret",
    "end_check check_thunk",
    // Callers do this in place; the function exists for the differential test.
    "begin_check check_pointer",
    "jmp    *{pointer}",
    "end_check check_pointer",
    per_vcpu_offset = sym PER_VCPU_OFFSET,
    steal_time = sym RECORDS,
    preempted = const offset_of!(StealTime, preempted),
    plain = sym check_call,
    pointer = sym POINTER,
    options(att_syntax)
);

unsafe extern "C" {
    // Not callable from Rust: they preserve registers that the C convention lets a function
    // destroy.
    fn check_save1();
    fn check_save2();
    fn check_thunk();
    fn check_pointer();
}

/// The pointer that [`Pointer`] calls through.
static POINTER: unsafe extern "C" fn() = check_save0;

/// The check in Rust, as a compiler sees it.
///
/// # Safety
/// `vcpu` is a vCPU's index.
#[inline(always)]
unsafe fn ask(vcpu: usize) -> bool {
    // SAFETY: the caller guarantees an index of a vCPU, and the table has an entry for each.
    let offset = unsafe { *PER_VCPU_OFFSET.get_unchecked(vcpu) };
    let record = (&raw const RECORDS).cast::<Record>().wrapping_byte_add(offset);
    // SAFETY: the offset of each vCPU leads to its record in the static array.
    let record = unsafe { &*record };
    record.preempted() != 0
}

/// The check as a plain function, compiled; it took an `int` then. The linker puts it on a cache
/// line of its own.
///
/// # Safety
/// `vcpu` is a vCPU's index.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".text.check_call")]
#[inline(never)]
#[expect(
    clippy::cast_sign_loss,
    reason = "no index is negative; the sign extension is the cost of the `int`"
)]
unsafe extern "C" fn check_call(vcpu: i32) -> bool {
    let vcpu = vcpu as usize;
    // SAFETY: as the caller guarantees.
    unsafe { ask(vcpu) }
}

/// The code of [`Inline`] as a function, for the differential test.
///
/// # Safety
/// `vcpu` is a vCPU's index.
unsafe extern "C" fn check_inline(vcpu: usize) -> bool {
    // SAFETY: as the caller guarantees.
    unsafe { ask(vcpu) }
}

callee_save! {
    /// The generic callee-save wrapper: it saves eight registers around the function of [`Call`].
    Thunk, "call {check}", check_thunk
}
callee_save! {
    /// The assembly of the first mail: it saves two registers, and sign-extends its argument.
    Save2, "call {check}", check_save2
}
callee_save! {
    /// The assembly of the reply: it saves one register, and sign-extends its argument.
    Save1, "call {check}", check_save1
}
callee_save! {
    /// `save0`, called through a pointer in memory.
    Pointer, "call *{check}", POINTER
}

/// A plain function call: the compiler assumes that all caller-saved registers of C are lost.
#[derive(Clone, Copy, Debug)]
pub struct Call;

impl Check for Call {
    const FORM: params::Check = params::Check::Call;

    #[inline(always)]
    fn is_preempted(vcpu: VcpuId) -> bool {
        // SAFETY: the argument is the index of a vCPU.
        unsafe { check_call(i32::from(vcpu.apic_id())) }
    }
}

/// Inline code without a call.
#[derive(Clone, Copy, Debug)]
pub struct Inline;

impl Check for Inline {
    const FORM: params::Check = params::Check::Inline;

    #[inline(always)]
    fn is_preempted(vcpu: VcpuId) -> bool {
        // SAFETY: the argument is the index of a vCPU.
        unsafe { ask(vcpu.index()) }
    }
}

/// All forms of the check, in the order of [`params::Check::ALL`].
pub const FORMS: [Form; 7] = [
    Form { name: "thunk", code: check_thunk, convention: Convention::CalleeSave },
    Form { name: "call", code: as_code_of_int(check_call), convention: Convention::C },
    Form { name: "save2", code: check_save2, convention: Convention::CalleeSave },
    Form { name: "save1", code: check_save1, convention: Convention::CalleeSave },
    Form { name: "save0", code: check_save0, convention: Convention::CalleeSave },
    Form { name: "inline", code: as_code(check_inline), convention: Convention::C },
    Form { name: "pointer", code: check_pointer, convention: Convention::CalleeSave },
];

const fn as_code_of_int(function: unsafe extern "C" fn(i32) -> bool) -> unsafe extern "C" fn() {
    // SAFETY: both types are addresses of code, and the caller of a form knows its arguments.
    unsafe { core::mem::transmute(function) }
}

const fn as_code(function: unsafe extern "C" fn(usize) -> bool) -> unsafe extern "C" fn() {
    // SAFETY: as above.
    unsafe { core::mem::transmute(function) }
}

#[cfg(test)]
#[cfg(not(modelled))]
mod tests {
    use protocol::MAX_VCPUS;

    use super::*;
    use crate::check::Save0;
    use crate::steal_time::testing::{exclusively, set_preempted};

    fn each_form_agrees<K: Check>() {
        exclusively(|| {
            for vcpu in VcpuId::first(MAX_VCPUS) {
                for value in [0, 1, 2, 3, 128, 255] {
                    set_preempted(vcpu, value);
                    assert_eq!(
                        K::is_preempted(vcpu),
                        value != 0,
                        "{}, vCPU {vcpu}, preempted {value}",
                        K::FORM
                    );
                }
                set_preempted(vcpu, 0);
            }
            let middle = VcpuId::new(100).unwrap();
            set_preempted(middle, 1);
            let seen: Vec<_> = VcpuId::first(MAX_VCPUS).filter(|vcpu| K::is_preempted(*vcpu)).collect();
            set_preempted(middle, 0);
            assert_eq!(seen, [middle], "{}", K::FORM);
        });
    }

    #[test]
    fn every_form_agrees_with_preempted_and_reads_no_neighbour() {
        each_form_agrees::<Thunk>();
        each_form_agrees::<Call>();
        each_form_agrees::<Save2>();
        each_form_agrees::<Save1>();
        each_form_agrees::<Save0>();
        each_form_agrees::<Inline>();
        each_form_agrees::<Pointer>();
    }

    #[test]
    fn forms_have_the_names_of_the_command_line() {
        let names: Vec<_> = params::Check::ALL.iter().map(|check| check.name()).collect();
        assert_eq!(FORMS.map(|form| form.name).to_vec(), names);
    }
}
