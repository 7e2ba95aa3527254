//! Boot state: low memory and registers of a vCPU before its first instruction.
//!
//! - [`low_memory`]: where the boot structures lie.
//! - `registers`: how the vCPUs start.
//! - `acpi` and `mp_table`: the tables by which a guest finds its CPUs.

mod acpi;
pub mod low_memory;
mod mp_table;
mod registers;

use crate::error::VmmError;
use crate::memory::Ram;
use low_memory::{GDT, PAGE_TABLES};

pub use acpi::write as write_acpi_tables;
pub use registers::{Entry, set_registers};

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
