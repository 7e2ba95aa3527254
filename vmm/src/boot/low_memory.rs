//! Low memory: where the boot structures lie, below every payload.
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

use std::ops::Range;

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
/// Stack pointer of a vCPU that starts by [`Entry::Long`](super::Entry::Long).
pub const STACK_TOP: u64 = 0x9_f000;
