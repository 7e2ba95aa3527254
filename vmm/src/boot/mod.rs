//! Boot state: low memory and registers of a vCPU before its first instruction.
//!
//! Low memory, below every payload:
//!
//! | GPA | content |
//! |---|---|
//! | 0x1000 | global descriptor table |
//! | 0x2000 | `hvm_start_info`, its memory map and module list |
//! | 0x3000 | command line |
//! | 0x8000 | free: our payload places its real-mode AP code here |
//! | 0x9000 | Linux zero page |
//! | 0xa000 | page tables: identity map of the first 4 GiB in 2 MiB pages |
//! | 0x9fc00 | MP floating pointer, above usable RAM; its table lies at 0xf0000 |
//! | 0xe0000 | ACPI tables |

mod acpi;
mod mp_table;
mod registers;

use std::ops::Range;

use protocol::payload::note::Note;

use crate::error::VmmError;
use crate::memory::Ram;

pub use acpi::write as write_acpi_tables;
pub use registers::set_registers;

/// How the vCPUs start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Every vCPU enters at the note's entry in long mode, as [`protocol::payload::note`] defines.
    Direct(Note),
    /// The boot vCPU enters at this GPA in 32-bit protected mode, and starts the others.
    Pvh(u32),
    /// The boot vCPU enters at this GPA in long mode, by the 64-bit boot protocol of Linux, and
    /// starts the others.
    Long(u64),
}

/// GPAs of the boot structures. No segment may overlap them.
pub const AREA: Range<u64> = 0x1000..0x1_0000;

/// GPA of the global descriptor table.
pub const GDT: u64 = 0x1000;
/// GPA of the PVH `hvm_start_info`.
pub const START_INFO: u64 = 0x2000;
/// GPA of the memory map of the start info.
pub const MEMORY_MAP: u64 = 0x2100;
/// GPA of the module list of the start info.
pub const MODULES: u64 = 0x2800;
/// GPA of the command line, which ends with a zero byte.
pub const COMMAND_LINE: u64 = 0x3000;
/// Maximum length of the command line (bytes, without the zero byte).
pub const COMMAND_LINE_MAX: usize = 0x4fff;
/// GPA of the Linux zero page, `boot_params`.
pub const BOOT_PARAMS: u64 = 0x9000;
/// GPA of the PML4 of vCPUs that start in long mode. The lower page tables follow it.
pub const PAGE_TABLES: u64 = 0xa000;
/// Stack pointer of a vCPU that starts by [`Entry::Long`].
pub const STACK_TOP: u64 = 0x9_f000;

/// Writes the descriptor table, the page tables and the MP table of a guest with `vcpus` vCPUs.
///
/// # Errors
/// [`VmmError::OutsideMemory`] with less than 1 MiB of RAM.
pub fn write_tables(ram: &Ram, vcpus: usize) -> Result<(), VmmError> {
    for (gpa, descriptor) in (GDT..).step_by(8).zip(registers::DESCRIPTORS) {
        ram.write_object(gpa, &descriptor)?;
    }
    write_identity_map(ram)?;
    mp_table::write(ram, vcpus)
}

/// Writes an identity map of the first 4 GiB: a PML4 entry, four PDPT entries, and four page
/// directories of 2 MiB pages.
fn write_identity_map(ram: &Ram) -> Result<(), VmmError> {
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
