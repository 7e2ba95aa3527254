//! The zero page: what a Linux kernel that is entered in long mode is told of its machine.
//!
//! `boot_params`, at [`BOOT_PARAMS`]: the setup header of a bzImage, or one that says as much for a kernel that has none;
//! the command line, the initrd, the memory map, and the ACPI tables.
//!
//! Source: Linux `Documentation/arch/x86/boot.rst` and `zero-page.rst`.

use std::ops::Range;

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};

use super::start_info::usable;
use crate::boot::{BOOT_PARAMS, COMMAND_LINE, COMMAND_LINE_MAX};
use crate::memory::{MemoryError, Ram};

/// `E820_TYPE_RAM`.
const RAM: u32 = 1;
/// A boot loader that nobody has numbered.
const UNKNOWN_LOADER: u8 = 0xff;
/// `LOADED_HIGH`.
const LOADED_HIGH: u8 = 1;

/// The header for a kernel that has none.
fn plain_header() -> setup_header {
    setup_header {
        boot_flag: 0xaa55,
        header: u32::from_le_bytes(*b"HdrS"),
        version: 0x20c,
        cmdline_size: u32::try_from(COMMAND_LINE_MAX).unwrap_or(u32::MAX),
        kernel_alignment: 0x100_0000,
        ..setup_header::default()
    }
}

/// Writes the zero page of a kernel with this `setup` header, if it has one.
pub(super) fn write(
    ram: &Ram,
    setup: Option<setup_header>,
    initrd: Option<Range<u64>>,
    rsdp: Option<u64>,
) -> Result<(), MemoryError> {
    let mut params = boot_params { hdr: setup.unwrap_or_else(plain_header), ..boot_params::default() };
    params.hdr.type_of_loader = UNKNOWN_LOADER;
    params.hdr.loadflags |= LOADED_HIGH;
    params.hdr.cmd_line_ptr = low(COMMAND_LINE);
    if let Some(initrd) = initrd {
        params.hdr.ramdisk_image = low(initrd.start);
        params.hdr.ramdisk_size = low(initrd.end - initrd.start);
    }
    params.acpi_rsdp_addr = rsdp.unwrap_or(0);
    for range in usable(ram) {
        let entry = boot_e820_entry { addr: range.start, size: range.end - range.start, r#type: RAM };
        params.e820_table[usize::from(params.e820_entries)] = entry;
        params.e820_entries += 1;
    }
    ram.write_object(BOOT_PARAMS, &params)
}

/// An address or size below 4 GiB, as all of these are.
fn low(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn fields_lie_where_the_protocol_says() {
        assert_eq!(size_of::<boot_params>(), 4096);
        for (offset, place) in [
            (offset_of!(boot_params, acpi_rsdp_addr), 0x70),
            (offset_of!(boot_params, e820_entries), 0x1e8),
            (offset_of!(boot_params, hdr), 0x1f1),
            (offset_of!(boot_params, e820_table), 0x2d0),
            (offset_of!(boot_params, hdr) + offset_of!(setup_header, type_of_loader), 0x210),
            (offset_of!(boot_params, hdr) + offset_of!(setup_header, ramdisk_image), 0x218),
            (offset_of!(boot_params, hdr) + offset_of!(setup_header, cmd_line_ptr), 0x228),
            (offset_of!(boot_params, hdr) + offset_of!(setup_header, pref_address), 0x258),
        ] {
            assert_eq!(offset, place);
        }
    }
}
