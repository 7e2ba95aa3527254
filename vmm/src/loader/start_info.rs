//! What a PVH guest is told of its machine: `hvm_start_info`, with its memory map and command line.
//!
//! Source: Xen `public/arch-x86/hvm/start_info.h`.

use std::ops::Range;

use linux_loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use protocol::machine::{HIGH_RAM_START, LOW_RAM_END};

use crate::boot::{COMMAND_LINE, MEMORY_MAP, MODULES, START_INFO};
use crate::memory::{MemoryError, Ram};

const MAGIC: u32 = 0x336e_c578;
const TYPE_RAM: u32 = 1;

/// Writes the start info of a guest with `cmdline`, perhaps a module, the initrd, and perhaps ACPI tables.
pub(super) fn write(
    ram: &Ram,
    cmdline: &str,
    module: Option<Range<u64>>,
    rsdp: Option<u64>,
) -> Result<(), MemoryError> {
    ram.write(COMMAND_LINE, cmdline.as_bytes())?;
    ram.write(COMMAND_LINE + cmdline.len() as u64, &[0])?;
    let mut info = hvm_start_info {
        magic: MAGIC,
        version: 1,
        cmdline_paddr: COMMAND_LINE,
        rsdp_paddr: rsdp.unwrap_or(0),
        memmap_paddr: MEMORY_MAP,
        ..hvm_start_info::default()
    };
    for (gpa, range) in (MEMORY_MAP..).step_by(size_of::<hvm_memmap_table_entry>()).zip(usable(ram)) {
        let entry = hvm_memmap_table_entry {
            addr: range.start,
            size: range.end - range.start,
            type_: TYPE_RAM,
            reserved: 0,
        };
        ram.write_object(gpa, &entry)?;
        info.memmap_entries += 1;
    }
    if let Some(range) = module {
        let entry = hvm_modlist_entry {
            paddr: range.start,
            size: range.end - range.start,
            ..hvm_modlist_entry::default()
        };
        ram.write_object(MODULES, &entry)?;
        info.nr_modules = 1;
        info.modlist_paddr = MODULES;
    }
    ram.write_object(START_INFO, &info)
}

/// RAM that the guest may use: all but the PC's hole below 1 MiB.
pub(super) fn usable(ram: &Ram) -> impl Iterator<Item = Range<u64>> {
    ram.ranges()
        .flat_map(|range| {
            [range.start..range.end.min(LOW_RAM_END), range.start.max(HIGH_RAM_START)..range.end]
        })
        .filter(|range| range.start < range.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usable_ram_leaves_the_hole_and_keeps_what_lies_above_4_gib() {
        let ranges = |mib| usable(&Ram::new(mib).unwrap()).collect::<Vec<_>>();
        assert_eq!(ranges(16), [0..0x9_fc00, 0x10_0000..0x100_0000]);
        assert_eq!(ranges(4096), [0..0x9_fc00, 0x10_0000..0xc000_0000, 0x1_0000_0000..0x1_4000_0000]);
    }
}
