//! Differential test of the check: each form against the check in Rust, and against its convention.
//!
//! A callee-save check promises more than a compiler verifies: only `rax` and the flags change. So
//! an assembly frame fills every register with a pattern of its own, calls the form, and stores
//! what it finds: general registers, stack pointer and the words above it, SSE registers, both
//! control words, flags. The answer must equal `preempted != 0`, and everything else must be
//! unchanged.
//!
//! The test runs wherever the check runs: on the host, and in the guest as a conformance scene. It
//! omits the upper halves of AVX registers, which the payload does not enable.

#![expect(unsafe_code, reason = "calls what keeps no calling convention, from a frame that notices")]

use core::arch::naked_asm;
use core::fmt;
use core::mem::offset_of;

use protocol::VcpuId;

use crate::steal_time::record_of;

/// A form of the check under test.
#[derive(Clone, Copy)]
pub struct Form {
    /// The name of the form.
    pub name: &'static str,
    /// The code. It takes a vCPU's index in `rdi` and returns in `al`. Not callable from Rust.
    pub code: unsafe extern "C" fn(),
    /// What the form must preserve.
    pub convention: Convention,
}

/// What a form must preserve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Convention {
    /// Everything except `rax` and the flags.
    CalleeSave,
    /// The callee-saved registers of the C calling convention.
    C,
}

/// The general registers except `rsp`, in the order of [`Registers::general`].
const GENERAL: [&str; 15] =
    ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];
const RAX: usize = 0;
const RDI: usize = 5;
/// The callee-saved registers of C: rbx, rbp, r12 to r15.
const CALLEE_SAVED: [usize; 6] = [1, 6, 11, 12, 13, 14];

/// Number of words above the return address that are compared.
const ABOVE: usize = 4;

/// Carry, parity, adjust, zero, sign, overflow: the flags that a comparison changes.
const ARITHMETIC: u64 = 0x8d5;

/// All arithmetic flags set, interrupts on, and the bit that is always 1.
const FLAGS: u64 = ARITHMETIC | 0x202;

/// The state of a processor.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C, align(16))]
struct Registers {
    vectors: [u128; 16],
    general: [u64; GENERAL.len()],
    stack_pointer: u64,
    above: [u64; ABOVE],
    flags: u64,
    mxcsr: u32,
    x87_control: u32,
}

impl Registers {
    /// Returns a state in which no two registers hold the same pattern.
    const fn patterns() -> Self {
        const WORD: u64 = 0x0123_4567_89ab_cdef;
        let mut patterns = Self {
            vectors: [0; 16],
            general: [0; GENERAL.len()],
            stack_pointer: 0,
            above: [0; ABOVE],
            flags: FLAGS,
            mxcsr: 0,
            x87_control: 0,
        };
        let (mut place, mut word) = (0, WORD);
        while place < 16 {
            word = word.rotate_left(4);
            patterns.vectors[place] = ((word as u128) << 64) | !word as u128;
            if place < GENERAL.len() {
                patterns.general[place] = word ^ 0x5555_0000_0000_5555;
            }
            if place < ABOVE {
                patterns.above[place] = !word ^ 0x3333_0000_0000_3333;
            }
            place += 1;
        }
        patterns
    }
}

/// Input and output of the frame.
#[repr(C)]
struct Trial {
    /// Loaded before the call. The control words and the stack pointer are taken from the caller.
    before: Registers,
    /// Stored after the call.
    after: Registers,
}

/// Calls `form` with the registers of `trial.before`, and stores those that it leaves in
/// `trial.after`.
///
/// # Safety
/// `form` must return to its caller with `rsp` unchanged, and write no memory but below its return
/// address.
#[unsafe(naked)]
unsafe extern "C" fn call_in_frame(form: unsafe extern "C" fn(), trial: *mut Trial) {
    naked_asm!(
        "push   %rbx",
        "push   %rbp",
        "push   %r12",
        "push   %r13",
        "push   %r14",
        "push   %r15",
        "push   %rsi",
        "push   %rdi",
        "stmxcsr {before} + {mxcsr}(%rsi)",
        "movw   $0, {before} + {x87} + 2(%rsi)",
        "fnstcw {before} + {x87}(%rsi)",
        "movw   $0, {after} + {x87} + 2(%rsi)",
        // The words above, the highest first.
        "pushq  {before} + {above} + 24(%rsi)",
        "pushq  {before} + {above} + 16(%rsi)",
        "pushq  {before} + {above} + 8(%rsi)",
        "pushq  {before} + {above}(%rsi)",
        "movq   %rsp, {before} + {rsp}(%rsi)",
        ".irp   n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
        "movups {before} + 16 * \\n(%rsi), %xmm\\n",
        ".endr",
        "pushq  {before} + {flags}(%rsi)",
        "popfq",
        // From here to `pushfq` only the form changes flags.
        "movq   %rsi, %rax",
        "movq   {before} + {general} + 0x08(%rax), %rbx",
        "movq   {before} + {general} + 0x10(%rax), %rcx",
        "movq   {before} + {general} + 0x18(%rax), %rdx",
        "movq   {before} + {general} + 0x20(%rax), %rsi",
        "movq   {before} + {general} + 0x28(%rax), %rdi",
        "movq   {before} + {general} + 0x30(%rax), %rbp",
        "movq   {before} + {general} + 0x38(%rax), %r8",
        "movq   {before} + {general} + 0x40(%rax), %r9",
        "movq   {before} + {general} + 0x48(%rax), %r10",
        "movq   {before} + {general} + 0x50(%rax), %r11",
        "movq   {before} + {general} + 0x58(%rax), %r12",
        "movq   {before} + {general} + 0x60(%rax), %r13",
        "movq   {before} + {general} + 0x68(%rax), %r14",
        "movq   {before} + {general} + 0x70(%rax), %r15",
        "movq   {before} + {general} + 0x00(%rax), %rax",
        "call   *32(%rsp)",
        // Exchanges the result for the trial, without another register.
        "xchgq  %rax, 40(%rsp)",
        "movq   %rbx, {after} + {general} + 0x08(%rax)",
        "movq   %rcx, {after} + {general} + 0x10(%rax)",
        "movq   %rdx, {after} + {general} + 0x18(%rax)",
        "movq   %rsi, {after} + {general} + 0x20(%rax)",
        "movq   %rdi, {after} + {general} + 0x28(%rax)",
        "movq   %rbp, {after} + {general} + 0x30(%rax)",
        "movq   %r8,  {after} + {general} + 0x38(%rax)",
        "movq   %r9,  {after} + {general} + 0x40(%rax)",
        "movq   %r10, {after} + {general} + 0x48(%rax)",
        "movq   %r11, {after} + {general} + 0x50(%rax)",
        "movq   %r12, {after} + {general} + 0x58(%rax)",
        "movq   %r13, {after} + {general} + 0x60(%rax)",
        "movq   %r14, {after} + {general} + 0x68(%rax)",
        "movq   %r15, {after} + {general} + 0x70(%rax)",
        "movq   %rsp, {after} + {rsp}(%rax)",
        "movq   40(%rsp), %rcx",
        "movq   %rcx, {after} + {general} + 0x00(%rax)",
        "pushfq",
        "popq   {after} + {flags}(%rax)",
        "cld",
        ".irp   n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
        "movups %xmm\\n, {after} + 16 * \\n(%rax)",
        ".endr",
        "stmxcsr {after} + {mxcsr}(%rax)",
        "fnstcw {after} + {x87}(%rax)",
        "ldmxcsr {before} + {mxcsr}(%rax)",
        "fldcw  {before} + {x87}(%rax)",
        "popq   {after} + {above}(%rax)",
        "popq   {after} + {above} + 8(%rax)",
        "popq   {after} + {above} + 16(%rax)",
        "popq   {after} + {above} + 24(%rax)",
        "addq   $16, %rsp",
        "pop    %r15",
        "pop    %r14",
        "pop    %r13",
        "pop    %r12",
        "pop    %rbp",
        "pop    %rbx",
        "ret",
        before = const offset_of!(Trial, before),
        after = const offset_of!(Trial, after),
        general = const offset_of!(Registers, general),
        rsp = const offset_of!(Registers, stack_pointer),
        above = const offset_of!(Registers, above),
        flags = const offset_of!(Registers, flags),
        mxcsr = const offset_of!(Registers, mxcsr),
        x87 = const offset_of!(Registers, x87_control),
        options(att_syntax)
    )
}

const _: () = assert!(offset_of!(Registers, vectors) == 0);

/// A deviation of a form from what it must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The vCPU of the call.
    pub vcpu: VcpuId,
    /// The value of `preempted` at the call.
    pub value: u8,
    /// What deviated.
    pub what: What,
}

/// What a form can get wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// The answer, which was this.
    Answer(u8),
    /// The general register of this name.
    General(&'static str),
    /// The SSE register of this number.
    Vector(usize),
    /// The stack pointer, or a word above it.
    Stack,
    /// These flags, which no comparison changes.
    Flags(u64),
    /// A control word of SSE or x87.
    Control,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vCPU {}, byte {}: {:?}", self.vcpu, self.value, self.what)
    }
}

/// Tries `form` for the first `vcpus` vCPUs and every value of `preempted`. Returns the number of
/// trials.
///
/// No other program may write the records meanwhile.
///
/// # Errors
/// The first [`Difference`]. `preempted` of that vCPU keeps the value in question.
///
/// # Safety
/// `form` must be a check: it takes an index in `rdi`, returns with `rsp` unchanged, and writes no
/// memory but below its return address.
pub unsafe fn compare(form: Form, vcpus: usize) -> Result<u64, Difference> {
    let mut trial = Trial { before: Registers::patterns(), after: Registers::patterns() };
    let mut trials = 0;
    for vcpu in VcpuId::first(vcpus) {
        for value in 0..=u8::MAX {
            record_of(vcpu).set_preempted(value);
            trial.before.general[RDI] = vcpu.index() as u64;
            // SAFETY: the caller vouches for the form, and the trial is ours.
            unsafe { call_in_frame(form.code, &raw mut trial) };
            if let Some(what) = difference(&trial, value, form.convention) {
                return Err(Difference { vcpu, value, what });
            }
            trials += 1;
        }
        record_of(vcpu).set_preempted(0);
    }
    Ok(trials)
}

/// Compares the states of `trial`, in which `preempted` was `value`.
fn difference(trial: &Trial, value: u8, convention: Convention) -> Option<What> {
    let Trial { before, after } = trial;
    let answer = after.general[RAX].to_le_bytes()[0];
    // The check in Rust, of which the forms are translations.
    if answer != u8::from(value != 0) {
        return Some(What::Answer(answer));
    }
    let keeps_all = convention == Convention::CalleeSave;
    let mut general =
        (0..GENERAL.len()).filter(|place| *place != RAX && (keeps_all || CALLEE_SAVED.contains(place)));
    let changed = general.find(|place| before.general[*place] != after.general[*place]);
    if let Some(place) = changed {
        return Some(What::General(GENERAL[place]));
    }
    if keeps_all && let Some(place) = (0..16).find(|place| before.vectors[*place] != after.vectors[*place]) {
        return Some(What::Vector(place));
    }
    if (before.stack_pointer, before.above) != (after.stack_pointer, after.above) {
        return Some(What::Stack);
    }
    if (before.mxcsr, before.x87_control) != (after.mxcsr, after.x87_control) {
        return Some(What::Control);
    }
    let flags = (before.flags ^ after.flags) & !ARITHMETIC;
    (flags != 0).then_some(What::Flags(flags))
}

#[cfg(test)]
#[cfg(not(modelled))]
mod tests {
    use core::arch::global_asm;

    use protocol::MAX_VCPUS;

    use super::*;
    use crate::lab::check_forms::FORMS;
    use crate::steal_time::testing::exclusively;
    use crate::steal_time::{PER_VCPU_OFFSET, RECORDS};

    // The merged form, with one defect in each.
    global_asm!(
        ".macro bad_form name, body:vararg",
        ".globl \\name",
        "\\name:",
        "movq   {per_vcpu_offset}(,%rdi,8), %rax",
        "\\body",
        "cmpb   $0, {records} + 16(%rax)",
        "setne  %al",
        "ret",
        ".endm",
        ".pushsection .text",
        "bad_form form_that_clobbers_rcx, xorl %ecx, %ecx",
        "bad_form form_that_clobbers_r15, incq %r15",
        "bad_form form_that_clobbers_xmm7, pxor %xmm7, %xmm7",
        "bad_form form_that_sets_df, std",
        "bad_form form_that_writes_above, movq %rax, 16(%rsp)",
        ".globl form_that_rounds",
        "form_that_rounds:",
        "pushq  $0x1f80 | 0x6000",
        "ldmxcsr (%rsp)",
        "popq   %rax",
        "movq   {per_vcpu_offset}(,%rdi,8), %rax",
        "cmpb   $0, {records} + 16(%rax)",
        "setne  %al",
        "ret",
        ".globl form_of_one_bit",
        "form_of_one_bit:",
        "movq   {per_vcpu_offset}(,%rdi,8), %rax",
        "testb  $1, {records} + 16(%rax)",
        "setne  %al",
        "ret",
        ".popsection",
        per_vcpu_offset = sym PER_VCPU_OFFSET,
        records = sym RECORDS,
        options(att_syntax)
    );

    unsafe extern "C" {
        fn form_that_clobbers_rcx();
        fn form_that_clobbers_r15();
        fn form_that_clobbers_xmm7();
        fn form_that_sets_df();
        fn form_that_writes_above();
        fn form_that_rounds();
        fn form_of_one_bit();
    }

    #[test]
    fn every_form_agrees_for_every_vcpu_and_value_and_preserves_the_rest() {
        for form in FORMS {
            // SAFETY: it is a form of the check.
            let compared = exclusively(|| unsafe { compare(form, MAX_VCPUS) });
            assert_eq!(compared, Ok(255 * 256), "{}", form.name);
        }
    }

    #[test]
    fn form_with_one_defect_is_detected() {
        let bad: [(unsafe extern "C" fn(), What); 7] = [
            (form_that_clobbers_rcx, What::General("rcx")),
            (form_that_clobbers_r15, What::General("r15")),
            (form_that_clobbers_xmm7, What::Vector(7)),
            (form_that_sets_df, What::Flags(0x400)),
            (form_that_writes_above, What::Stack),
            (form_that_rounds, What::Control),
            (form_of_one_bit, What::Answer(0)),
        ];
        for (code, what) in bad {
            let form = Form { name: "bad", code, convention: Convention::CalleeSave };
            let difference = exclusively(|| {
                // SAFETY: these return, and what else they spoil the frame has saved.
                let difference = unsafe { compare(form, 2) }.unwrap_err();
                record_of(difference.vcpu).set_preempted(0);
                difference
            });
            assert_eq!(difference.what, what);
            let value = if what == What::Answer(0) { 2 } else { 0 };
            assert_eq!((difference.vcpu, difference.value), (VcpuId::BOOT, value));
        }
    }
}
