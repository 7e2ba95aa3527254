//! Boot parameters: the description of the machine that a PVH or Linux guest reads at its start.
//!
//! A PVH guest reads `hvm_start_info`; a Linux kernel that is entered in long mode reads the zero
//! page, `boot_params`. Both hold the command line, the initrd, the memory map and the ACPI tables.
//!
//! Sources: Xen `public/arch-x86/hvm/start_info.h`; Linux `Documentation/arch/x86/boot.rst` and
//! `zero-page.rst`.

use std::ops::Range;

use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{self, BootConfigurator, BootParams};
use linux_loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use protocol::payload::machine::{HIGH_RAM_START, LOW_RAM_END};
use vm_memory::GuestAddress;

use crate::boot::low_memory::{BOOT_PARAMS, COMMAND_LINE, COMMAND_LINE_MAX, MEMORY_MAP, MODULES, START_INFO};
use crate::memory::Ram;

/// `XEN_HVM_START_MAGIC_VALUE`.
const START_INFO_MAGIC: u32 = 0x336e_c578;
/// `XEN_HVM_MEMMAP_TYPE_RAM` and `E820_TYPE_RAM`.
const TYPE_RAM: u32 = 1;
/// `type_of_loader` of a boot loader without an assigned number.
const UNKNOWN_LOADER: u8 = 0xff;
/// `loadflags`: the kernel lies at or above 1 MiB.
const LOADED_HIGH: u8 = 1;

/// The boot parameters that differ between guests with the same memory.
pub(super) struct BootInfo {
    /// Guest physical addresses of the initrd.
    pub(super) initrd: Option<Range<u64>>,
    /// Guest physical address of the ACPI RSDP; 0 without ACPI tables.
    pub(super) rsdp: u64,
}

/// Writes the PVH start info with its memory map and module list.
///
/// # Errors
/// linux-loader's, when a structure lies outside RAM.
pub(super) fn write_pvh(ram: &Ram, info: &BootInfo) -> Result<(), configurator::Error> {
    let entry = |range: Range<u64>| hvm_memmap_table_entry {
        addr: range.start,
        size: range.end - range.start,
        type_: TYPE_RAM,
        reserved: 0,
    };
    let memory_map: Vec<_> = usable(ram).map(entry).collect();
    let module = info.initrd.as_ref().map(|initrd| hvm_modlist_entry {
        paddr: initrd.start,
        size: initrd.end - initrd.start,
        ..hvm_modlist_entry::default()
    });
    let start_info = hvm_start_info {
        magic: START_INFO_MAGIC,
        version: 1,
        cmdline_paddr: COMMAND_LINE,
        rsdp_paddr: info.rsdp,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: u32::try_from(memory_map.len()).unwrap_or(u32::MAX),
        modlist_paddr: module.map_or(0, |_| MODULES),
        nr_modules: module.map_or(0, |_| 1),
        ..hvm_start_info::default()
    };
    let mut params = BootParams::new(&start_info, GuestAddress(START_INFO));
    params.set_sections(&memory_map, GuestAddress(MEMORY_MAP));
    params.set_modules(module.as_slice(), GuestAddress(MODULES));
    PvhBootConfigurator::write_bootparams(&params, ram.memory())
}

/// Writes the zero page. `setup` is the setup header of a bzImage.
///
/// # Errors
/// linux-loader's, when the page lies outside RAM.
pub(super) fn write_linux(
    ram: &Ram,
    setup: Option<setup_header>,
    info: &BootInfo,
) -> Result<(), configurator::Error> {
    let mut params = boot_params { hdr: setup.unwrap_or_else(default_header), ..boot_params::default() };
    params.hdr.type_of_loader = UNKNOWN_LOADER;
    params.hdr.loadflags |= LOADED_HIGH;
    params.hdr.cmd_line_ptr = below_4_gib(COMMAND_LINE);
    if let Some(initrd) = &info.initrd {
        params.hdr.ramdisk_image = below_4_gib(initrd.start);
        params.hdr.ramdisk_size = below_4_gib(initrd.end - initrd.start);
    }
    params.acpi_rsdp_addr = info.rsdp;
    for range in usable(ram) {
        let entry = boot_e820_entry { addr: range.start, size: range.end - range.start, r#type: TYPE_RAM };
        params.e820_table[usize::from(params.e820_entries)] = entry;
        params.e820_entries += 1;
    }
    LinuxBootConfigurator::write_bootparams(
        &BootParams::new(&params, GuestAddress(BOOT_PARAMS)),
        ram.memory(),
    )
}

/// Returns the setup header for a kernel that has none.
fn default_header() -> setup_header {
    setup_header {
        boot_flag: 0xaa55,
        header: u32::from_le_bytes(*b"HdrS"),
        version: 0x20c,
        cmdline_size: u32::try_from(COMMAND_LINE_MAX).unwrap_or(u32::MAX),
        kernel_alignment: 0x100_0000,
        ..setup_header::default()
    }
}

/// Converts an address or size. The command line and the initrd lie below 4 GiB.
fn below_4_gib(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// Returns the RAM that the guest may use: all but the legacy hole below 1 MiB.
fn usable(ram: &Ram) -> impl Iterator<Item = Range<u64>> {
    ram.ranges()
        .flat_map(|range| {
            [range.start..range.end.min(LOW_RAM_END), range.start.max(HIGH_RAM_START)..range.end]
        })
        .filter(|range| range.start < range.end)
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn usable_ram_excludes_the_legacy_hole_and_continues_above_4_gib() {
        let ranges = |mib| usable(&Ram::new(mib).unwrap()).collect::<Vec<_>>();
        assert_eq!(ranges(16), [0..0x9_fc00, 0x10_0000..0x100_0000]);
        assert_eq!(ranges(4096), [0..0x9_fc00, 0x10_0000..0xc000_0000, 0x1_0000_0000..0x1_4000_0000]);
    }

    #[test]
    fn zero_page_fields_lie_at_the_offsets_of_the_boot_protocol() {
        assert_eq!(size_of::<boot_params>(), 4096);
        for (offset, expected) in [
            (offset_of!(boot_params, acpi_rsdp_addr), 0x70),
            (offset_of!(boot_params, e820_entries), 0x1e8),
            (offset_of!(boot_params, hdr), 0x1f1),
            (offset_of!(boot_params, e820_table), 0x2d0),
            (offset_of!(boot_params, hdr) + offset_of!(setup_header, type_of_loader), 0x210),
            (offset_of!(boot_params, hdr) + offset_of!(setup_header, ramdisk_image), 0x218),
            (offset_of!(boot_params, hdr) + offset_of!(setup_header, cmd_line_ptr), 0x228),
            (offset_of!(boot_params, hdr) + offset_of!(setup_header, pref_address), 0x258),
        ] {
            assert_eq!(offset, expected);
        }
    }
}
