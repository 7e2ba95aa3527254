//! bzImage: a Linux kernel that unpacks itself, by the 64-bit boot protocol.
//!
//! The file begins with a setup header, and real-mode code that nobody runs any more; what follows is loaded and entered
//! 0x200 bytes behind its begin, in long mode. It unpacks the kernel to where that wants to run, for which the header
//! names the room.
//!
//! Source: Linux `Documentation/arch/x86/boot.rst`.

use std::ops::Range;

use linux_loader::loader::bootparam::setup_header;
use object::read::ReadRef;
use vm_memory::ByteValued;

use super::error::PayloadError;
use super::layout::{Layout, Segment};
use crate::boot::Entry;

/// Where in the file, and in the zero page, the setup header begins.
pub(super) const HEADER: u64 = 0x1f1;
/// Where the header's own length lies, which counts from [`MAGIC`] on.
const HEADER_LENGTH: u64 = 0x201;
/// Where the header says that it is one.
pub(super) const MAGIC: (u64, &[u8]) = (0x202, b"HdrS");
/// The first version that tells whether there is a 64-bit entry.
const VERSION: u16 = 0x20c;
/// `XLF_KERNEL_64`: there is one.
const HAS_64_BIT_ENTRY: u16 = 1;
/// How far behind the begin of what is loaded.
const ENTRY: u64 = 0x200;
/// Setup sectors where the header says 0.
const SETUP_SECTORS: u64 = 4;
const SECTOR: u64 = 512;

/// Understands the file of `length` bytes that `data` reads, and that has the magic.
///
/// # Errors
/// [`PayloadError::BzImage`].
pub(super) fn parse<'data>(data: impl ReadRef<'data>, length: u64) -> Result<Layout, PayloadError> {
    let header = header(data).ok_or(PayloadError::BzImage("cut short"))?;
    if { header.version } < VERSION || { header.xloadflags } & HAS_64_BIT_ENTRY == 0 {
        return Err(PayloadError::BzImage("for 32-bit processors, or older than Linux 3.8"));
    }
    let sectors = match header.setup_sects {
        0 => SETUP_SECTORS,
        sectors => sectors.into(),
    };
    let content = (sectors + 1) * SECTOR..length;
    if content.end.saturating_sub(content.start) <= ENTRY {
        return Err(PayloadError::BzImage("cut short"));
    }
    let range = range(&header, content.end - content.start).ok_or(PayloadError::BzImage("damaged"))?;
    let boot_entry = Entry::Long(range.start + ENTRY);
    let segment = Segment { index: 0, range, content };
    Ok(Layout { segments: vec![segment], note: None, boot_entry, setup: Some(header) })
}

/// The header, as long as it says it is; the rest is zero.
fn header<'data>(data: impl ReadRef<'data>) -> Option<setup_header> {
    let read = |offset, size| data.read_bytes_at(offset, size).ok();
    let length = MAGIC.0 - HEADER + u64::from(*read(HEADER_LENGTH, 1)?.first()?);
    let bytes = read(HEADER, length.min(size_of::<setup_header>() as u64))?;
    let mut header = setup_header::default();
    header.as_mut_slice().get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(header)
}

/// Where `size` bytes of it go, with the room that the kernel needs to unpack itself.
fn range(header: &setup_header, size: u64) -> Option<Range<u64>> {
    let (preferred, room) = (header.pref_address, u64::from(header.init_size));
    let start = if header.relocatable_kernel == 0 { header.code32_start.into() } else { preferred };
    let end = start.checked_add(size)?;
    // One that cannot be moved unpacks itself to where it prefers to be, wherever it was loaded.
    Some(start..end.max(start.max(preferred).checked_add(room)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An image with one setup sector, and `body` bytes behind it.
    pub(in super::super) fn image(edit: impl FnOnce(&mut setup_header), body: usize) -> Vec<u8> {
        let mut header = setup_header {
            setup_sects: 1,
            jump: 0x6aeb, // the header ends 0x6a bytes behind its magic
            header: 0x5372_6448,
            version: 0x20f,
            xloadflags: HAS_64_BIT_ENTRY,
            code32_start: 0x10_0000,
            pref_address: 0x100_0000,
            relocatable_kernel: 1,
            init_size: 0x30_0000,
            ..setup_header::default()
        };
        edit(&mut header);
        let mut image = vec![0; 1024];
        let start = usize::try_from(HEADER).unwrap();
        image[start..start + size_of::<setup_header>()].copy_from_slice(header.as_slice());
        image.resize(1024 + body, 0xcc);
        image
    }

    fn of(edit: impl FnOnce(&mut setup_header), body: usize) -> Result<Layout, PayloadError> {
        let image = image(edit, body);
        parse(image.as_slice(), image.len() as u64)
    }

    #[test]
    fn relocatable_kernel_is_loaded_where_it_prefers_with_room_to_unpack() {
        let layout = of(|_| {}, 0x1000).unwrap();
        assert_eq!(layout.boot_entry, Entry::Long(0x100_0200));
        let segment = &layout.segments[0];
        assert_eq!((segment.range.clone(), segment.content.clone()), (0x100_0000..0x130_0000, 1024..0x1400));
        assert!(layout.setup.is_some_and(|header| { header.pref_address } == 0x100_0000));
    }

    #[test]
    fn kernel_that_cannot_be_moved_is_loaded_at_1_mib_and_has_room_where_it_prefers_to_run() {
        let layout = of(|header| header.relocatable_kernel = 0, 0x1000).unwrap();
        assert_eq!(layout.boot_entry, Entry::Long(0x10_0200));
        assert_eq!(layout.segments[0].range, 0x10_0000..0x130_0000);
    }

    #[test]
    fn header_ends_where_it_says_and_what_lies_behind_is_no_header() {
        // One byte behind the magic's offset: nothing but what precedes `version`.
        let layout = of(|header| header.jump = 0x04eb, 0x1000);
        assert!(matches!(layout, Err(PayloadError::BzImage(_))), "{layout:?}");
    }

    #[test]
    fn kernels_without_a_64_bit_entry_and_damaged_ones_are_refused() {
        for edit in [
            (|header| header.version = 0x20b) as fn(&mut setup_header),
            |header| header.xloadflags = 0,
            |header| header.pref_address = u64::MAX,
            |header| header.setup_sects = 255,
        ] {
            assert!(matches!(of(edit, 0x1000), Err(PayloadError::BzImage(_))));
        }
        assert!(matches!(of(|_| {}, 0x200), Err(PayloadError::BzImage("cut short"))));
        let short = &image(|_| {}, 0)[..0x210];
        assert!(matches!(parse(short, 0x210), Err(PayloadError::BzImage(_))));
    }
}
