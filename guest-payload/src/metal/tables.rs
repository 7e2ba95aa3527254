//! The tables that the processor reads, built at compile time.
//!
//! Code at CPL 0 may be emulated at a microsecond per instruction, and filling in the tables would
//! take some ten thousand instructions. So `const fn`s build them, and the linker script places
//! them at [`protocol::payload::machine::TABLES`], which makes their own addresses constants.
//!
//! - Page tables map the first 4 GiB to themselves in 2 MiB pages. All is open to CPL 3 except
//!   [`SUPERVISOR`]; the last GiB, with the local APIC, is uncached.
//! - The gates of the IDT lead to stubs that lie 16 bytes apart ([`super::traps`]). CPL 3 may call
//!   `int3`.
//! - Each vCPU has a GDT and a TSS, for a stack of CPL 0. All share one bitmap of ports for CPL 3:
//!   it lies behind the last TSS, and the limit of each TSS includes it. (IOPL would be simpler,
//!   but some backends ignore it.)
//!
//! Every page of the tables costs a page fault at each start, so they are small.

#![expect(unsafe_code, reason = "the tables have a section, and so an address, of their own")]

use core::cell::UnsafeCell;
use core::mem::{offset_of, size_of};

use protocol::MAX_VCPUS;
use protocol::payload::machine::{COM1, DOORBELL_PORT, EXIT_PORT, I8042_COMMAND, MILESTONE_PORT};
use protocol::payload::machine::{SUPERVISOR, TABLES};

use super::ports::{PIT_CHANNEL_0, PIT_CHANNEL_2, PIT_CONTROL, SPEAKER};

/// Code segment at CPL 0. The selectors are those of Linux, which every backend has seen.
pub(crate) const KERNEL_CODE: u16 = 0x10;
/// Data segment of both levels, and stack segment of CPL 3.
pub(crate) const USER_DATA: u16 = 0x28 | 3;
/// Code segment at CPL 3.
pub(crate) const USER_CODE: u16 = 0x30 | 3;
/// TSS of the vCPU.
pub(crate) const TASK: u16 = 0x40;

/// Vector of a kick.
pub(crate) const KICK: u8 = 0x20;
/// Spurious vector of the local APIC.
pub(crate) const SPURIOUS: u8 = 0x2f;
/// Number of vectors that have a stub.
pub(crate) const VECTORS: usize = 0x30;
/// Distance of two stubs (bytes).
pub(crate) const STUB_SIZE: usize = 16;

/// Size of a vCPU's stack at CPL 0 (bytes): for a call, a kick within it, and an exception within
/// that.
pub(crate) const KERNEL_STACK_SIZE: usize = 1024;

/// All tables.
#[repr(C, align(4096))]
pub(crate) struct Tables {
    pml4: [u64; 512],
    pdpt: [u64; 512],
    directories: [[u64; 512]; 4],
    idt: [[u64; 2]; VECTORS],
    gdts: [Gdt; MAX_VCPUS],
    tasks: [Task; MAX_VCPUS],
    /// A clear bit opens the port.
    bitmap: [u8; PORTS / 8],
    /// The processor reads one byte beyond the bitmap.
    bitmap_end: [u8; 8],
    gdt_pointers: [Pointer; MAX_VCPUS],
    idt_pointer: Pointer,
}

#[derive(Clone, Copy)]
#[repr(C, align(16))]
struct Gdt([u64; 10]);

/// A GDT without its TSS descriptor.
const GDT: Gdt = {
    let mut gdt = [0; 10];
    gdt[KERNEL_CODE as usize / 8] = 0x00af_9b00_0000_ffff;
    gdt[USER_DATA as usize / 8] = 0x00cf_f300_0000_ffff;
    gdt[USER_CODE as usize / 8] = 0x00af_fb00_0000_ffff;
    Gdt(gdt)
};

/// Operand of `lgdt` and `lidt`, in 16 bytes.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
struct Pointer {
    padding: [u16; 3],
    limit: u16,
    base: u64,
}

/// Offset of the operand in a [`Pointer`] (bytes).
pub(crate) const POINTER_OPERAND: usize = offset_of!(Pointer, limit);
/// Size of a [`Pointer`] (bytes).
pub(crate) const POINTER_SIZE: usize = size_of::<Pointer>();

/// Limit of the ports that CPL 3 may use.
const PORTS: usize = 0x400;

/// A 64-bit TSS.
#[derive(Clone, Copy)]
#[repr(C, packed(4))]
struct Task {
    reserved: u32,
    /// Stack pointer of CPL 0.
    rsp0: u64,
    rest: [u32; 22],
    reserved_too: u16,
    bitmap_offset: u16,
}

const fn address_of(offset: usize) -> u64 {
    TABLES + offset as u64
}

const fn gdt_address(vcpu: usize) -> u64 {
    address_of(offset_of!(Tables, gdts) + vcpu * size_of::<Gdt>())
}

const fn task_address(vcpu: usize) -> u64 {
    address_of(offset_of!(Tables, tasks) + vcpu * size_of::<Task>())
}

/// Begin of the stacks of CPL 0, right behind the tables, in the order of vCPUs.
pub(crate) const KERNEL_STACKS_ADDRESS: u64 = TABLES + size_of::<Tables>() as u64;

const fn kernel_stack_top(vcpu: usize) -> u64 {
    KERNEL_STACKS_ADDRESS + ((vcpu + 1) * KERNEL_STACK_SIZE) as u64
}

/// Address of the top page table.
pub(crate) const PML4: u64 = address_of(offset_of!(Tables, pml4));
/// Address of the first vCPU's [`Pointer`] to its GDT.
pub(crate) const GDT_POINTERS: u64 = address_of(offset_of!(Tables, gdt_pointers));
/// Address of the `lidt` operand.
pub(crate) const IDT_POINTER: u64 = address_of(offset_of!(Tables, idt_pointer) + POINTER_OPERAND);

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const UNCACHED: u64 = 1 << 4;
const LARGE: u64 = 1 << 7;

const fn page(index: usize) -> u64 {
    let address = (index as u64) << 21;
    let mut entry = address | PRESENT | WRITABLE | LARGE;
    if address < SUPERVISOR.start || address >= SUPERVISOR.end {
        entry |= USER;
    }
    if address >= 3 << 30 {
        entry |= UNCACHED;
    }
    entry
}

/// Returns an interrupt gate to the stub of `vector`.
const fn gate(vector: usize) -> [u64; 2] {
    let handler = SUPERVISOR.start + (vector * STUB_SIZE) as u64;
    let level: u64 = if vector == 3 { 3 } else { 0 };
    let flags: u64 = 0x8e | level << 5;
    let low = handler & 0xffff | (KERNEL_CODE as u64) << 16 | flags << 40 | (handler >> 16 & 0xffff) << 48;
    [low, handler >> 32]
}

/// Returns the offset of the bitmap from a vCPU's TSS (bytes).
const fn bitmap_offset(vcpu: usize) -> usize {
    offset_of!(Tables, bitmap) - offset_of!(Tables, tasks) - vcpu * size_of::<Task>()
}

/// Returns the descriptor of a vCPU's TSS, available.
const fn task_descriptor(vcpu: usize) -> [u64; 2] {
    let (base, limit) = (task_address(vcpu), (bitmap_offset(vcpu) + PORTS / 8) as u64);
    let low = limit | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
    [low, base >> 32]
}

const fn bitmap() -> [u8; PORTS / 8] {
    let mut bitmap = [0xff; PORTS / 8];
    let open = [
        I8042_COMMAND,
        EXIT_PORT,
        MILESTONE_PORT,
        DOORBELL_PORT,
        PIT_CHANNEL_0,
        PIT_CHANNEL_2,
        PIT_CONTROL,
        SPEAKER,
    ];
    let mut index = 0;
    while index < open.len() {
        bitmap[open[index] as usize / 8] &= !(1 << (open[index] % 8));
        index += 1;
    }
    // The eight ports of the UART are one byte of the bitmap.
    bitmap[COM1 as usize / 8] = 0;
    bitmap
}

impl Tables {
    #[expect(clippy::cast_possible_truncation, reason = "offsets and sizes below 64 KiB")]
    const fn new() -> Self {
        let mut tables = Self {
            pml4: [0; 512],
            pdpt: [0; 512],
            directories: [[0; 512]; 4],
            idt: [[0; 2]; VECTORS],
            gdts: [GDT; MAX_VCPUS],
            tasks: [Task { reserved: 0, rsp0: 0, rest: [0; 22], reserved_too: 0, bitmap_offset: 0 };
                MAX_VCPUS],
            bitmap: bitmap(),
            bitmap_end: [0xff; 8],
            gdt_pointers: [Pointer { padding: [0; 3], limit: size_of::<Gdt>() as u16 - 1, base: 0 };
                MAX_VCPUS],
            idt_pointer: Pointer {
                padding: [0; 3],
                limit: VECTORS as u16 * 16 - 1,
                base: address_of(offset_of!(Tables, idt)),
            },
        };
        tables.pml4[0] = address_of(offset_of!(Tables, pdpt)) | PRESENT | WRITABLE | USER;
        let mut gib = 0;
        while gib < 4 {
            let directory = offset_of!(Tables, directories) + gib * 4096;
            tables.pdpt[gib] = address_of(directory) | PRESENT | WRITABLE | USER;
            let mut entry = 0;
            while entry < 512 {
                tables.directories[gib][entry] = page(gib * 512 + entry);
                entry += 1;
            }
            gib += 1;
        }
        let mut vector = 0;
        while vector < VECTORS {
            tables.idt[vector] = gate(vector);
            vector += 1;
        }
        let mut vcpu = 0;
        while vcpu < MAX_VCPUS {
            let descriptor = task_descriptor(vcpu);
            tables.gdts[vcpu].0[TASK as usize / 8] = descriptor[0];
            tables.gdts[vcpu].0[TASK as usize / 8 + 1] = descriptor[1];
            tables.tasks[vcpu].rsp0 = kernel_stack_top(vcpu);
            tables.tasks[vcpu].bitmap_offset = bitmap_offset(vcpu) as u16;
            tables.gdt_pointers[vcpu].base = gdt_address(vcpu);
            vcpu += 1;
        }
        tables
    }
}

/// The tables in memory. Only the processor writes them: it sets the busy bit of a TSS and accessed
/// bits.
#[repr(transparent)]
struct Image(UnsafeCell<Tables>);

// SAFETY: code refers to the tables only by the addresses that it loads into the processor.
unsafe impl Sync for Image {}

#[used]
#[unsafe(link_section = ".supervisor.tables")]
static IMAGE: Image = Image(UnsafeCell::new(Tables::new()));
