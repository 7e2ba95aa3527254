//! The check: is that vCPU running?
//!
//! In February 2017 the question on the kernel's mailing list was how few registers this can touch, and what it costs a
//! caller that they be saved. Every shape that the thread argued about is here, and two that it could not have:
//!
//! | form | what it is | its caller loses |
//! |---|---|---|
//! | [`Thunk`] | the generic callee-save wrapper: eight registers saved around a plain function | `rax` |
//! | [`Call`] | a plain function, as the patch proposed: the compiler saves what it must | all that C lets it |
//! | [`Save2`] | the assembly that the mail quotes: `rdi` and `rdx` saved, the argument sign-extended | `rax` |
//! | [`Save1`] | the reply: the record's displacement folded into the compare; `rdi` saved | `rax` |
//! | [`Save0`] | what landed (Linux `dd0fd8bca185`): the argument is a `long` already, nothing is saved | `rax` |
//! | [`Pointer`] | the same through a pointer, as paravirtual calls are before they are patched | `rax` |
//! | [`Inline`] | no call at all: what the thread wished that a compiler could do | a register of the compiler's choice |
//!
//! All but [`Call`] are called by an inline-assembly `call` that tells the compiler just that: `rax` and the flags are gone,
//! every other register is as it was. The compiler keeps its loop variables where they are. Each form's code begins on a cache
//! line of its own, so that placement decides nothing.
//!
//! The whole byte is compared with 0, as Linux' assembly does; any value but 0 means preempted. (The sources quoted in the
//! mail take `movq $steal_time+16, %rax`, a 32-bit immediate that is sign-extended: so do we.)

#![expect(unsafe_code, reason = "the checks are assembly, and so are their calls")]
#![expect(clippy::inline_always, reason = "the point of a check is what it costs its caller's registers")]

use core::arch::{asm, global_asm};
use core::mem::offset_of;

use protocol::VcpuId;
use protocol::steal_time::StealTime;
use protocol::words;

use crate::differential::{Convention, Form};
use crate::steal_time::{PER_VCPU_OFFSET, RECORDS, Record};

/// A form of the check, as the locks are compiled against it.
pub trait Check: Copy {
    /// Its word.
    const WORD: words::Check;

    /// Whether the host has taken `vcpu`, which wants to run, off its CPU.
    ///
    /// A hint: it may have changed when this returns. `false` for every vCPU that has no record, or whose host does not
    /// publish.
    fn is_preempted(vcpu: VcpuId) -> bool;
}

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
    "begin_check check_save0",
    "movq   {per_vcpu_offset}(,%rdi,8), %rax",
    "cmpb   $0, {steal_time}+{preempted}(%rax)",
    "setne  %al",
    "ret",
    "end_check check_save0",
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
    // What the C convention lets a function destroy, but for rax, which has the answer.
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
    // What callers do in place; alone so that it can be tested.
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
    // Not to be called from Rust: they keep what the C convention lets a function destroy.
    fn check_save0();
    fn check_save1();
    fn check_save2();
    fn check_thunk();
    fn check_pointer();
}

/// Where [`Pointer`] finds the check.
static POINTER: unsafe extern "C" fn() = check_save0;

/// What is asked, as a compiler sees it.
///
/// # Safety
/// `vcpu` is a vCPU's index.
#[inline(always)]
unsafe fn ask(vcpu: usize) -> bool {
    // SAFETY: the caller's promise: the table has an entry for each vCPU.
    let offset = unsafe { *PER_VCPU_OFFSET.get_unchecked(vcpu) };
    let record = (&raw const RECORDS).cast::<Record>().wrapping_byte_add(offset);
    // SAFETY: each vCPU's offset leads to its record, which lies in the array for ever.
    let record = unsafe { &*record };
    record.preempted() != 0
}

/// The plain function, as a compiler makes it; it took an `int` then. The linker puts it on a cache line of its own.
///
/// # Safety
/// `vcpu` is a vCPU's index.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".text.check_call")]
#[inline(never)]
#[expect(
    clippy::cast_sign_loss,
    reason = "no vCPU's index is negative; the extension is what an `int` costs"
)]
unsafe extern "C" fn check_call(vcpu: i32) -> bool {
    let vcpu = vcpu as usize;
    // SAFETY: the caller's promise.
    unsafe { ask(vcpu) }
}

/// What [`Inline`] asks, alone so that it can be tested.
///
/// # Safety
/// `vcpu` is a vCPU's index.
unsafe extern "C" fn check_inline(vcpu: usize) -> bool {
    // SAFETY: the caller's promise.
    unsafe { ask(vcpu) }
}

/// A form that destroys nothing but `rax`: its caller says so to the compiler.
macro_rules! callee_save {
    ($(#[$doc:meta])* $name:ident, $call:literal, $code:path) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name;

        impl Check for $name {
            const WORD: words::Check = words::Check::$name;

            #[inline(always)]
            fn is_preempted(vcpu: VcpuId) -> bool {
                let preempted: u8;
                // SAFETY: `rdi` is a vCPU's index, within both tables that the check reads. It writes `al` (and the rest of
                // `rax`) and the flags, nothing else that it does not restore; it uses the stack, which is declared by
                // not saying `nostack`.
                unsafe {
                    asm!(
                        $call,
                        check = sym $code,
                        in("rdi") vcpu.index(),
                        lateout("al") preempted,
                        options(readonly, att_syntax)
                    );
                }
                preempted != 0
            }
        }
    };
}

callee_save! {
    /// The generic wrapper: eight registers saved around [`Call`]'s function.
    Thunk, "call {check}", check_thunk
}
callee_save! {
    /// The mail's assembly: two registers saved, a sign extension.
    Save2, "call {check}", check_save2
}
callee_save! {
    /// The reply's: one register saved, a sign extension.
    Save1, "call {check}", check_save1
}
callee_save! {
    /// What landed: nothing saved. What everything here uses that is not told to use another.
    Save0, "call {check}", check_save0
}
callee_save! {
    /// What landed, called through a pointer in memory.
    Pointer, "call *{check}", POINTER
}

/// A plain function: the compiler takes all registers for lost that C lets a function destroy.
#[derive(Clone, Copy, Debug)]
pub struct Call;

impl Check for Call {
    const WORD: words::Check = words::Check::Call;

    #[inline(always)]
    fn is_preempted(vcpu: VcpuId) -> bool {
        // SAFETY: it is a vCPU's index.
        unsafe { check_call(i32::from(vcpu.apic_id())) }
    }
}

/// No call.
#[derive(Clone, Copy, Debug)]
pub struct Inline;

impl Check for Inline {
    const WORD: words::Check = words::Check::Inline;

    #[inline(always)]
    fn is_preempted(vcpu: VcpuId) -> bool {
        // SAFETY: it is a vCPU's index.
        unsafe { ask(vcpu.index()) }
    }
}

/// All forms of the check that there are.
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
    // SAFETY: both are addresses of code; what calls a form knows what it takes.
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
    use crate::steal_time::testing::{exclusively, set_preempted};

    fn each_form_agrees<K: Check>() {
        exclusively(|| {
            for vcpu in VcpuId::first(MAX_VCPUS) {
                for value in [0, 1, 2, 3, 128, 255] {
                    set_preempted(vcpu, value);
                    assert_eq!(K::is_preempted(vcpu), value != 0, "{}, vCPU {vcpu}, byte {value}", K::WORD);
                }
                set_preempted(vcpu, 0);
            }
            let middle = VcpuId::new(100).unwrap();
            set_preempted(middle, 1);
            let seen: Vec<_> = VcpuId::first(MAX_VCPUS).filter(|vcpu| K::is_preempted(*vcpu)).collect();
            set_preempted(middle, 0);
            assert_eq!(seen, [middle], "{}", K::WORD);
        });
    }

    #[test]
    fn every_form_says_as_its_callers_call_it_what_the_byte_says_and_sees_no_neighbour() {
        each_form_agrees::<Thunk>();
        each_form_agrees::<Call>();
        each_form_agrees::<Save2>();
        each_form_agrees::<Save1>();
        each_form_agrees::<Save0>();
        each_form_agrees::<Inline>();
        each_form_agrees::<Pointer>();
    }

    #[test]
    fn forms_have_the_names_of_their_words() {
        let words: Vec<_> = words::Check::ALL.iter().map(|check| check.word()).collect();
        assert_eq!(FORMS.map(|form| form.name).to_vec(), words);
    }

    /// The landed form, byte by byte: 8 + 7 + 3 + 1.
    #[test]
    fn landed_check_has_19_bytes_and_saves_no_register() {
        let start = (check_save0 as *const ()).cast::<u8>();
        // SAFETY: the check is code, 19 bytes long, and code is readable.
        let code = unsafe { std::slice::from_raw_parts(start, 19) };
        assert_eq!(code[..4], [0x48, 0x8b, 0x04, 0xfd], "movq table(,%rdi,8), %rax");
        assert_eq!(code[8..10], [0x80, 0xb8], "cmpb $0, displacement(%rax)");
        assert_eq!(code[14..], [0, 0x0f, 0x95, 0xc0, 0xc3], "$0; setne %al; ret");
        assert_eq!(start.align_offset(64), 0);
    }
}
