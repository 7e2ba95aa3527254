//! Entry: three ways in, one path to CPL 3.
//!
//! | entry | state | vCPU |
//! |---|---|---|
//! | `entry_pvh` | 32-bit, paging off; EBX = start info | the boot vCPU, under any PVH loader |
//! | `trampoline` | real mode, at [`TRAMPOLINE`] | the others, after INIT and SIPI |
//! | `entry_direct` | 64-bit; RDI = vCPU, RSI = start info | all, if the monitor reads our note |
//!
//! Each first reads the time stamp counter. They meet in `enter_by_tsc`, which loads the vCPU's
//! tables and goes to CPL 3 with interrupts on: `start(vcpu, start_info, first_instruction)`, on a
//! stack of its own.

#![expect(unsafe_code, reason = "the way into Rust is not Rust")]

use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::sync::atomic::AtomicU64;

use protocol::payload::machine::TRAMPOLINE;
use protocol::payload::note::ABI_VERSION;
use protocol::payload::report::Report;
use protocol::{MAX_VCPUS, VcpuId};

use super::tables::{
    GDT_POINTERS, IDT_POINTER, KERNEL_CODE, KERNEL_STACK_SIZE, KERNEL_STACKS_ADDRESS, PML4, POINTER_OPERAND,
    POINTER_SIZE, TASK, USER_CODE, USER_DATA,
};

/// Size of a vCPU's stack at CPL 3 (bytes).
pub(crate) const USER_STACK_SIZE: usize = 16 << 10;

/// Stacks of CPL 3, in the order of vCPUs. Each grows down from its end.
#[repr(C, align(4096))]
pub(crate) struct UserStacks(UnsafeCell<[[u8; USER_STACK_SIZE]; MAX_VCPUS]>);

// SAFETY: each vCPU uses its own stack, and code refers to the stacks by address only.
unsafe impl Sync for UserStacks {}

pub(crate) static USER_STACKS: UserStacks = UserStacks(UnsafeCell::new([[0; USER_STACK_SIZE]; MAX_VCPUS]));

/// The report. The note contains its address.
pub(crate) static REPORT: Report = Report::new();

/// Address of the start info, which the boot vCPU leaves for the vCPUs that it starts.
pub(crate) static START_INFO: AtomicU64 = AtomicU64::new(0);

/// Returns the vCPU of the caller, from the address of its stack.
pub(crate) fn vcpu_of_stack() -> Option<VcpuId> {
    let here = 0_u8;
    let offset = (&raw const here).addr().checked_sub((&raw const USER_STACKS).addr())?;
    VcpuId::new(offset / USER_STACK_SIZE)
}

const CR4_PAE: u32 = 1 << 5;
const CR4_OSFXSR: u32 = 1 << 9;
const CR4_OSXMMEXCPT: u32 = 1 << 10;
const CR0_PE: u32 = 1;
const CR0_MP: u32 = 1 << 1;
const CR0_ET: u32 = 1 << 4;
const CR0_NE: u32 = 1 << 5;
const CR0_PG: u32 = 1 << 31;
const MSR_EFER: u32 = 0xc000_0080;
const EFER_LME: u32 = 1 << 8;
/// RFLAGS at CPL 3: interrupts on, and the bit that is always 1.
const USER_FLAGS: u32 = 0x202;

global_asm!(
    // Enables paging and long mode, with 16-bit or 32-bit code. Destroys EAX, ECX and EDX.
    ".macro enter_long_mode",
    "movl   ${cr4}, %eax",
    "movl   %eax, %cr4",
    "movl   ${pml4}, %eax",
    "movl   %eax, %cr3",
    "movl   ${msr_efer}, %ecx",
    "movl   ${efer}, %eax",
    "xorl   %edx, %edx",
    "wrmsr",
    "movl   ${cr0}, %eax",
    "movl   %eax, %cr0",
    ".endm",
    //
    // The notes. Both contain physical addresses.
    ".pushsection .note.pvh, \"a\", @note",
    ".balign 4",
    ".long 4, 8, 18",
    ".asciz \"Xen\"",
    ".quad entry_pvh",
    ".popsection",
    ".pushsection .note.vmm, \"a\", @note",
    ".balign 4",
    ".long 4, 24, 1",
    ".asciz \"vmm\"",
    ".quad {abi_version}, entry_direct, {report}",
    ".popsection",
    //
    ".pushsection .supervisor.text, \"ax\", @progbits",
    ".code32",
    ".globl entry_pvh",
    "entry_pvh:",
    "rdtsc",
    "movl   %eax, %ebp",
    "movl   %edx, %ecx",
    "movl   %ebx, %esi",
    // Firmware may have left the two 8259s open. Their vectors would be exceptions here.
    "movb   $0xff, %al",
    "outb   %al, $0x21",
    "outb   %al, $0xa1",
    "movl   %ecx, %ebx",
    "enter_long_mode",
    "lgdt   {gdt_pointers} + {pointer_operand}",
    "ljmp   ${kernel_code}, $1f",
    ".code64",
    "1:",
    "xorl   %edi, %edi",
    "movl   %esi, %esi",
    "movl   %ebp, %eax",
    "movq   %rbx, %rdx",
    "jmp    enter_by_tsc",
    //
    // Entered by the trampoline, in long mode: EBP and EBX hold the time stamp.
    "entry_sipi:",
    "movl   %ebx, %r8d",
    "movl   $1, %eax",
    "cpuid",
    "shrl   $24, %ebx", // the local APIC's id, as this vCPU's own CPUID has it
    "movl   %ebx, %edi",
    "cmpl   ${max_vcpus}, %edi",
    "jae    9f",
    "movq   {start_info}, %rsi",
    "movl   %ebp, %eax",
    "movl   %r8d, %edx",
    "jmp    enter_by_tsc",
    "9:",
    "hlt",
    "jmp    9b",
    //
    ".globl entry_direct",
    "entry_direct:",
    "rdtsc",
    // The monitor's state is replaced, as far as it may differ.
    "movl   ${cr4}, %ecx",
    "movq   %rcx, %cr4",
    "movl   ${pml4}, %ecx",
    "movq   %rcx, %cr3",
    "movl   ${cr0}, %ecx",
    "movq   %rcx, %cr0",
    //
    // RDI = vCPU, RSI = start info, EDX:EAX = time stamp; our page tables, any GDT with a 64-bit
    // code segment.
    "enter_by_tsc:",
    "shlq   $32, %rdx",
    "orq    %rax, %rdx",
    "movl   %edi, %ecx",
    "imull  ${pointer_size}, %ecx, %ecx",
    "lgdt   {gdt_pointers} + {pointer_operand}(%rcx)",
    // A restarted vCPU finds its TSS busy, and a busy TSS cannot be loaded.
    "movq   {gdt_pointers} + {pointer_operand} + 2(%rcx), %rax",
    "andb   $0xfd, {task} + 5(%rax)",
    "lidt   {idt_pointer}",
    "movl   ${task}, %ecx",
    "ltr    %cx",
    "movl   ${user_data}, %ecx",
    "movl   %ecx, %ds",
    "movl   %ecx, %es",
    "leal   1(%rdi), %eax",
    "imull  ${kernel_stack_size}, %eax, %ecx",
    "leaq   {kernel_stacks}(%rcx), %rsp",
    "imull  ${user_stack_size}, %eax, %eax",
    "addq   ${user_stacks} - 8, %rax", // as if `start` had been called
    "pushq  ${user_data}",
    "pushq  %rax",
    "pushq  ${user_flags}",
    "pushq  ${user_code}",
    "pushq  ${start}",
    "iretq",
    ".popsection",
    //
    // Code at CPL 3 copies this to TRAMPOLINE. It runs there in real mode, CS = TRAMPOLINE / 16.
    ".pushsection .rodata.trampoline, \"a\", @progbits",
    ".globl trampoline, trampoline_end",
    "trampoline:",
    ".code16",
    "rdtsc",
    "movl   %eax, %ebp",
    "movl   %edx, %ebx",
    "movw   %cs, %ax",
    "movw   %ax, %ds",
    "lgdtl  2f - trampoline",
    "enter_long_mode",
    "ljmpl  ${kernel_code}, $entry_sipi",
    // A minimal GDT, until this vCPU knows its own. A real-mode operand has 6 bytes.
    ".balign 4",
    "2:",
    ".word  0x1f",
    ".long  3f - trampoline + {trampoline}",
    ".balign 8",
    "3:",
    ".quad  0, 0, 0x00af9b000000ffff, 0",
    "trampoline_end:",
    ".code64",
    ".popsection",
    abi_version = const ABI_VERSION,
    report = sym REPORT,
    start = sym crate::start,
    start_info = sym START_INFO,
    user_stacks = sym USER_STACKS,
    cr0 = const CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_PG,
    cr4 = const CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT,
    efer = const EFER_LME,
    msr_efer = const MSR_EFER,
    pml4 = const PML4,
    gdt_pointers = const GDT_POINTERS,
    pointer_operand = const POINTER_OPERAND,
    pointer_size = const POINTER_SIZE,
    idt_pointer = const IDT_POINTER,
    kernel_stacks = const KERNEL_STACKS_ADDRESS,
    kernel_stack_size = const KERNEL_STACK_SIZE,
    user_stack_size = const USER_STACK_SIZE,
    max_vcpus = const MAX_VCPUS,
    trampoline = const TRAMPOLINE,
    kernel_code = const KERNEL_CODE,
    user_code = const USER_CODE,
    user_data = const USER_DATA,
    user_flags = const USER_FLAGS,
    task = const TASK,
    options(att_syntax)
);
