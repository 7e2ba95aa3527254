//! bzImages: compressed Linux kernels, entered by the 64-bit boot protocol.
//!
//! The file begins with a setup header and real-mode code, which this protocol does not use. The
//! rest is loaded and entered in long mode, 0x200 bytes after its start. It decompresses the kernel
//! to its preferred address; the header declares the memory that this needs.
//!
//! Source: Linux `Documentation/arch/x86/boot.rst`.

use std::io;
use std::ops::Range;

use linux_loader::bootparam::setup_header;
use vm_memory::ByteValued;

use super::image::Image;
use super::layout::{Layout, Segment};
use crate::boot::Entry;

/// Offset of the setup header in the file and in the zero page.
const HEADER_OFFSET: u64 = 0x1f1;
/// Offset of the header's magic, `HdrS`.
pub(super) const MAGIC_OFFSET: u64 = 0x202;
/// Offset of the byte that holds the length of the header behind the magic.
const LENGTH_OFFSET: u64 = 0x201;
/// The first protocol version with `xloadflags` (Linux 3.8).
const MIN_VERSION: u16 = 0x20c;
/// `XLF_KERNEL_64`: the kernel has a 64-bit entry.
const XLF_KERNEL_64: u16 = 1;
/// Offset of the 64-bit entry in the loaded part.
const ENTRY_OFFSET: u64 = 0x200;
/// Number of setup sectors where the header holds 0.
const DEFAULT_SETUP_SECTORS: u64 = 4;
const SECTOR: u64 = 512;

/// Parses the bzImage `image`.
///
/// # Errors
/// The defect that prevents its use.
pub(super) fn parse(image: &Image) -> Result<Layout, String> {
    let defect = |what| {
        format!("the bzImage is {what} (it takes a 64-bit Linux 3.8 or newer, or the uncompressed vmlinux)")
    };
    let header = read_header(image).map_err(|_| defect("cut short"))?;
    if { header.version } < MIN_VERSION || { header.xloadflags } & XLF_KERNEL_64 == 0 {
        return Err(defect("for 32-bit processors, or older than Linux 3.8"));
    }
    let sectors = match header.setup_sects {
        0 => DEFAULT_SETUP_SECTORS,
        sectors => sectors.into(),
    };
    let content = (sectors + 1) * SECTOR..image.len();
    if content.end.saturating_sub(content.start) <= ENTRY_OFFSET {
        return Err(defect("cut short"));
    }
    let range = range(&header, content.end - content.start).ok_or_else(|| defect("damaged"))?;
    let boot_entry = Entry::Long(range.start + ENTRY_OFFSET);
    let segment = Segment { index: 0, range, content };
    Ok(Layout { segments: vec![segment], note: None, boot_entry, setup: Some(header) })
}

/// Reads the header up to the length that it declares. Fields behind that are zero.
fn read_header(image: &Image) -> io::Result<setup_header> {
    let [length]: [u8; 1] = image.read_object(LENGTH_OFFSET)?;
    let length = MAGIC_OFFSET - HEADER_OFFSET + u64::from(length);
    let mut header = setup_header::default();
    let bytes = header.as_mut_slice();
    let length = bytes.len().min(usize::try_from(length).unwrap_or(usize::MAX));
    image.read_at(HEADER_OFFSET, &mut bytes[..length])?;
    Ok(header)
}

/// Returns the guest memory that the kernel occupies until it is decompressed; `None` on overflow.
fn range(header: &setup_header, size: u64) -> Option<Range<u64>> {
    let (preferred, room) = (header.pref_address, u64::from(header.init_size));
    let start = if header.relocatable_kernel == 0 { header.code32_start.into() } else { preferred };
    let end = start.checked_add(size)?;
    // A kernel that is not relocatable decompresses to its preferred address from any other.
    Some(start..end.max(start.max(preferred).checked_add(room)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An image with one setup sector and `body` bytes behind it.
    fn image(edit: impl FnOnce(&mut setup_header), body: usize) -> Vec<u8> {
        let mut header = setup_header {
            setup_sects: 1,
            jump: 0x6aeb, // the header ends 0x6a bytes behind the magic
            header: 0x5372_6448,
            version: 0x20f,
            xloadflags: XLF_KERNEL_64,
            code32_start: 0x10_0000,
            pref_address: 0x100_0000,
            relocatable_kernel: 1,
            init_size: 0x30_0000,
            ..setup_header::default()
        };
        edit(&mut header);
        let mut image = vec![0; 1024];
        let start = usize::try_from(HEADER_OFFSET).unwrap();
        image[start..start + size_of::<setup_header>()].copy_from_slice(header.as_slice());
        image.resize(1024 + body, 0xcc);
        image
    }

    fn parsed(edit: impl FnOnce(&mut setup_header), body: usize) -> Result<Layout, String> {
        parse(&Image::from_bytes("test", image(edit, body)))
    }

    #[test]
    fn relocatable_kernel_is_loaded_at_its_preferred_address_with_room_to_decompress() {
        let layout = parsed(|_| {}, 0x1000).unwrap();
        assert_eq!(layout.boot_entry, Entry::Long(0x100_0200));
        let segment = &layout.segments[0];
        assert_eq!((segment.range.clone(), segment.content.clone()), (0x100_0000..0x130_0000, 1024..0x1400));
        assert!(layout.setup.is_some_and(|header| { header.pref_address } == 0x100_0000));
    }

    #[test]
    fn fixed_kernel_is_loaded_at_1_mib_with_room_at_its_preferred_address() {
        let layout = parsed(|header| header.relocatable_kernel = 0, 0x1000).unwrap();
        assert_eq!(layout.boot_entry, Entry::Long(0x10_0200));
        assert_eq!(layout.segments[0].range, 0x10_0000..0x130_0000);
    }

    #[test]
    fn bytes_behind_the_declared_length_of_the_header_are_not_read() {
        // This header ends before `version`.
        assert!(parsed(|header| header.jump = 0x04eb, 0x1000).is_err());
    }

    #[test]
    fn kernels_without_a_64_bit_entry_and_damaged_ones_are_refused() {
        for edit in [
            (|header| header.version = 0x20b) as fn(&mut setup_header),
            |header| header.xloadflags = 0,
            |header| header.pref_address = u64::MAX,
            |header| header.setup_sects = 255,
        ] {
            assert!(parsed(edit, 0x1000).is_err());
        }
        let cut = parsed(|_| {}, 0x200).unwrap_err();
        assert!(cut.starts_with("the bzImage is cut short"), "{cut}");
        let short = image(|_| {}, 0)[..0x210].to_vec();
        assert!(parse(&Image::from_bytes("test", short)).is_err());
    }
}
