//! Traps: what CPL 0 does once a vCPU runs.
//!
//! - **Calls** (`int3` from CPL 3). RAX holds the number of the call (see [`super::calls`]). The
//!   halt comes first, because it must be quick.
//! - **Kicks.** The handler signals the end of interrupt and returns. The purpose of a kick is to
//!   end a halt.
//! - **Exceptions.** A #GP at one of the two instructions that may fault on purpose continues
//!   behind it. Any other exception ends the run: it enters `crashed` at CPL 3, at the top of the
//!   vCPU's own stack, which prints and writes the exit port. An exception within `crashed` writes
//!   the exit port from here.
//!
//! The address of the stack identifies the vCPU.

#![expect(unsafe_code, reason = "code at CPL 0 is assembly")]

use core::arch::global_asm;

use protocol::MAX_VCPUS;
use protocol::payload::machine::{EXIT_PORT, LAPIC};

use super::calls::{CALL_CPUID, CALL_NAP, CALL_READ_MSR, CALL_WRITE_MSR};
use super::crash::{STATUS_CRASHED, crashed};
use super::entry::{USER_STACK_SIZE, USER_STACKS};
use super::lapic::{EOI, TIMER_INITIAL};
use super::tables::{
    KERNEL_STACK_SIZE, KERNEL_STACKS_ADDRESS, KICK, SPURIOUS, STUB_SIZE, USER_CODE, USER_DATA, VECTORS,
};

/// Vector of the general protection fault.
const VECTOR_GP: u8 = 13;

global_asm!(
    ".pushsection .supervisor.stubs, \"ax\", @progbits",
    ".globl exception_stubs",
    "exception_stubs:",
    ".set   vector, 0",
    ".rept  {vectors}",
    "  .balign {stub_size}",
    "  .if vector == 3",
    "    jmp  call",
    "  .elseif vector == {kick}",
    "    movabsl %eax, {lapic_eoi}", // any value will do; no register is touched
    "    iretq",
    "  .elseif vector == {spurious}",
    "    iretq",
    "  .else",
    "    .if (vector != 8) && ((vector < 10) || (vector > 14)) && (vector != 17) && (vector != 21)",
    "      pushq $0", // as if it had an error code
    "    .endif",
    "    pushq $vector",
    "    jmp  exception",
    "  .endif",
    "  .set vector, vector + 1",
    ".endr",
    ".popsection",
    //
    ".pushsection .supervisor.text, \"ax\", @progbits",
    "call:",
    "testl  %eax, %eax",
    "jnz    1f",
    // Halt while *RDI is ESI. Interrupts are off until the `sti`, which takes effect after the next
    // instruction, so a kick before the halt ends it.
    "cmpl   %esi, (%rdi)",
    "jne    2f",
    "sti",
    "hlt",
    "2:",
    "iretq",
    "1:",
    "cmpl   ${call_read_msr}, %eax",
    "je     3f",
    "cmpl   ${call_write_msr}, %eax",
    "je     4f",
    "cmpl   ${call_cpuid}, %eax",
    "je     5f",
    "cmpl   ${call_nap}, %eax",
    "je     10f",
    "lidt   9f", // an empty IDT: the next exception is a triple fault
    "ud2",
    "9: .skip 10",
    "10:", // EDI: ticks
    "movl   %edi, %eax",
    "movabsl %eax, {lapic_timer}",
    "sti",
    "hlt",
    "iretq",
    //
    "3:", // EDI: MSR. RAX: value; RDX: 0, or 1 if it faults
    "movl   %edi, %ecx",
    "may_fault_reading:",
    "rdmsr",
    "shlq   $32, %rdx",
    "orq    %rdx, %rax",
    "xorl   %edx, %edx",
    "iretq",
    "4:", // EDI: MSR; RSI: value. RDX: 0, or 1 if it faults
    "movl   %edi, %ecx",
    "movl   %esi, %eax",
    "movq   %rsi, %rdx",
    "shrq   $32, %rdx",
    "may_fault_writing:",
    "wrmsr",
    "xorl   %edx, %edx",
    "iretq",
    "has_faulted:",
    "xorl   %eax, %eax",
    "movl   $1, %edx",
    "iretq",
    "5:", // EDI: leaf; ESI: subleaf. EAX, R8D, ECX, EDX
    "pushq  %rbx",
    "movl   %edi, %eax",
    "movl   %esi, %ecx",
    "cpuid",
    "movl   %ebx, %r8d",
    "popq   %rbx",
    "iretq",
    //
    // On the stack: vector, error code, RIP, CS, RFLAGS, RSP, SS.
    "exception:",
    "cmpl   ${vector_gp}, (%rsp)",
    "jne    6f",
    "cmpq   $may_fault_reading, 16(%rsp)",
    "je     7f",
    "cmpq   $may_fault_writing, 16(%rsp)",
    "jne    6f",
    "7:",
    "movq   $has_faulted, 16(%rsp)",
    "addq   $16, %rsp",
    "iretq",
    "6:",
    "popq   %rdi", // vector
    "popq   %rsi", // error code
    "popq   %rdx", // RIP
    "movq   %cr2, %rcx",
    "movq   %rsp, %r8",
    "subq   ${kernel_stacks}, %r8",
    "shrq   ${kernel_stack_bits}, %r8", // vCPU
    "incb   crashes(%r8)",
    "cmpb   $1, crashes(%r8)",
    "jne    8f",
    "leal   1(%r8), %eax",
    "imull  ${user_stack_size}, %eax, %eax",
    "addq   ${user_stacks} - 8, %rax",
    "pushq  ${user_data}",
    "pushq  %rax",
    "pushq  $2", // interrupts off
    "pushq  ${user_code}",
    "pushq  ${crashed}",
    "iretq",
    "8:",
    "movl   ${status}, %eax",
    "outb   %al, ${exit_port}",
    "cli",
    "hlt",
    "jmp    8b",
    ".popsection",
    //
    ".pushsection .bss.supervisor.stacks, \"aw\", @nobits",
    ".globl kernel_stacks",
    ".balign 4096",
    "kernel_stacks: .skip {max_vcpus} * {kernel_stack_size}",
    ".popsection",
    ".pushsection .bss.supervisor.crashes, \"aw\", @nobits",
    "crashes: .skip {max_vcpus}",
    ".popsection",
    vectors = const VECTORS,
    stub_size = const STUB_SIZE,
    kick = const KICK,
    spurious = const SPURIOUS,
    lapic_eoi = const LAPIC + EOI,
    lapic_timer = const LAPIC + TIMER_INITIAL,
    vector_gp = const VECTOR_GP,
    call_read_msr = const CALL_READ_MSR,
    call_write_msr = const CALL_WRITE_MSR,
    call_cpuid = const CALL_CPUID,
    call_nap = const CALL_NAP, // what remains is CALL_SHUT_DOWN
    kernel_stacks = const KERNEL_STACKS_ADDRESS,
    kernel_stack_size = const KERNEL_STACK_SIZE,
    kernel_stack_bits = const KERNEL_STACK_SIZE.ilog2(),
    user_stack_size = const USER_STACK_SIZE,
    user_stacks = sym USER_STACKS,
    user_code = const USER_CODE,
    user_data = const USER_DATA,
    crashed = sym crashed,
    status = const STATUS_CRASHED,
    exit_port = const EXIT_PORT,
    max_vcpus = const MAX_VCPUS,
    options(att_syntax)
);
