//! Boot state: what low memory and the registers hold when a vCPU begins.
//!
//! Low memory, below what any payload is linked at:
//!
//! | GPA | what |
//! |---|---|
//! | 0x1000 | global descriptor table |
//! | 0x2000 | `hvm_start_info`, its memory map and module list |
//! | 0x3000 | command line |
//! | 0x8000 | left free: our payload's real-mode code for its APs |
//! | 0x9000 | Linux' zero page |
//! | 0xa000 | page tables: the first 4 GiB mapped to themselves in 2 MiB pages |
//! | 0x9fc00 | MP floating pointer (above usable RAM); the table itself at 0xf0000 |
//! | 0xe0000 | ACPI tables |

mod acpi;
mod mp_table;
mod registers;

use std::ops::Range;

use protocol::payload::Note;

use crate::memory::{MemoryError, Ram};

pub use acpi::write as write_acpi_tables;
pub use registers::set_registers;

/// How vCPUs begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Our payload: every vCPU enters here in long mode. See [`protocol::payload`].
    Direct(Note),
    /// The boot vCPU enters here in 32-bit protected mode; it starts the others.
    Pvh(u32),
    /// The boot vCPU enters here in long mode, by Linux' 64-bit boot protocol; it starts the others.
    Long(u64),
}

/// Where low memory holds what a guest is booted with; no segment may lie here.
pub const AREA: Range<u64> = 0x1000..0x1_0000;

/// The global descriptor table of vCPUs that begin in protected or long mode.
pub const GDT: u64 = 0x1000;
/// The PVH start info.
pub const START_INFO: u64 = 0x2000;
/// Its memory map.
pub const MEMORY_MAP: u64 = 0x2100;
/// Its module list.
pub const MODULES: u64 = 0x2800;
/// The command line, zero terminated.
pub const COMMAND_LINE: u64 = 0x3000;
/// Bytes that a command line can have.
pub const COMMAND_LINE_MAX: usize = 0x4fff;
/// Linux' zero page.
pub const BOOT_PARAMS: u64 = 0x9000;
/// The top page table of vCPUs that begin in long mode; the others follow.
pub const PAGE_TABLES: u64 = 0xa000;
/// The stack pointer of a vCPU that begins in long mode without knowing more.
pub const STACK_TOP: u64 = 0x9_f000;

/// Writes descriptor table, page tables and MP table.
///
/// # Errors
/// [`MemoryError::Outside`] when there is less than 1 MiB of RAM.
pub fn write_tables(ram: &Ram, vcpus: usize) -> Result<(), MemoryError> {
    for (gpa, descriptor) in (GDT..).step_by(8).zip(registers::DESCRIPTORS) {
        ram.write_object(gpa, &descriptor)?;
    }
    write_identity_map(ram)?;
    mp_table::write(ram, vcpus)
}

/// Maps the first 4 GiB to themselves: one PML4 entry, four PDPT entries, four directories of 2 MiB pages.
fn write_identity_map(ram: &Ram) -> Result<(), MemoryError> {
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE: u64 = 1 << 7;
    const TABLE: u64 = 0x1000;
    let (pml4, pdpt, directories) = (PAGE_TABLES, PAGE_TABLES + TABLE, PAGE_TABLES + 2 * TABLE);
    ram.write_object(pml4, &(pdpt | PRESENT_WRITABLE))?;
    let mut table = Vec::with_capacity(4 * 0x1000);
    for gib in 0..4 {
        ram.write_object(pdpt + 8 * gib, &((directories + gib * TABLE) | PRESENT_WRITABLE))?;
    }
    for page in 0..4 * 512_u64 {
        table.extend_from_slice(&(page << 21 | PRESENT_WRITABLE | LARGE).to_le_bytes());
    }
    ram.write(directories, &table)
}
