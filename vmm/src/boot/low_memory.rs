//! Low memory: where the boot structures lie, below every payload.
//!
//! [`RESERVED`] is the one list of them. The code that writes a structure takes its address from
//! here, and the loader refuses a segment that overlaps an entry.

use std::ops::Range;

use protocol::payload::machine::{LOW_RAM_END, TRAMPOLINE};

/// A range of guest memory that holds boot structures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Area {
    /// What lies there, for messages.
    pub content: &'static str,
    /// Its GPAs.
    pub range: Range<u64>,
}

impl Area {
    const fn new(content: &'static str, range: Range<u64>) -> Self {
        Self { content, range }
    }

    /// Returns the GPA at which it begins.
    pub const fn start(&self) -> u64 {
        self.range.start
    }
}

const DESCRIPTORS: Area = Area::new("the descriptor table", 0x1000..0x2000);
const PVH: Area = Area::new("the PVH start info", 0x2000..0x3000);
const COMMANDS: Area = Area::new("the command line", 0x3000..0x8000);
/// Our payload copies the real-mode code of its other vCPUs here.
const REAL_MODE: Area = Area::new("the real-mode start code", TRAMPOLINE as u64..0x9000);
const ZERO_PAGE: Area = Area::new("the Linux zero page", 0x9000..0xa000);
const MAPPING: Area = Area::new("the page tables", 0xa000..0x1_0000);
/// A vCPU that starts in long mode may push before it sets a stack of its own.
const STACK: Area = Area::new("the boot stack", 0x9_e000..0x9_f000);
/// The last KiB below 640 KiB, where guests search for the MP floating pointer.
pub(super) const MP_POINTER: Area = Area::new("the MP floating pointer", LOW_RAM_END..0xa_0000);
/// The tables begin with the RSDP, in the area that guests search.
pub(super) const ACPI: Area = Area::new("the ACPI tables", 0xe_0000..0xf_0000);
/// The MP table grows with the vCPUs, to 6 KiB. Linkers place the headers of an ELF file that is
/// linked at 1 MiB on the page below.
pub(super) const MP_TABLE: Area = Area::new("the MP table", 0xf_0000..0xf_8000);

/// All areas, ascending. No segment of a payload may overlap one.
pub const RESERVED: [Area; 10] =
    [DESCRIPTORS, PVH, COMMANDS, REAL_MODE, ZERO_PAGE, MAPPING, STACK, MP_POINTER, ACPI, MP_TABLE];

/// GPA of the global descriptor table.
pub const GDT: u64 = DESCRIPTORS.start();
/// GPA of the PVH `hvm_start_info`.
pub const START_INFO: u64 = PVH.start();
/// GPA of the memory map of the start info.
pub const MEMORY_MAP: u64 = PVH.start() + 0x100;
/// GPA of the module list of the start info.
pub const MODULES: u64 = PVH.start() + 0x800;
/// GPA of the command line, which ends with a zero byte.
pub const COMMAND_LINE: u64 = COMMANDS.start();
/// Maximum length of the command line (bytes, without the zero byte).
pub const COMMAND_LINE_MAX: usize = 0x4fff;
/// GPA of the Linux zero page, `boot_params`.
pub const BOOT_PARAMS: u64 = ZERO_PAGE.start();
/// GPA of the PML4 of vCPUs that start in long mode. The lower page tables follow it.
pub const PAGE_TABLES: u64 = MAPPING.start();
/// Stack pointer of a vCPU that starts by [`Entry::Long`](super::Entry::Long).
pub const STACK_TOP: u64 = STACK.range.end;

#[cfg(test)]
mod tests {
    use protocol::payload::machine::HIGH_RAM_START;

    use super::*;

    #[test]
    fn reserved_areas_are_ascending_disjoint_and_below_1_mib() {
        assert!(RESERVED.iter().all(|area| area.range.start < area.range.end));
        assert!(RESERVED.windows(2).all(|two| two[0].range.end <= two[1].range.start));
        assert!(RESERVED.iter().all(|area| area.range.end <= HIGH_RAM_START));
        assert_eq!(COMMAND_LINE + COMMAND_LINE_MAX as u64 + 1, COMMANDS.range.end);
    }
}
