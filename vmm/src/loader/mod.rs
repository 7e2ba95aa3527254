//! Loading: from a payload's bytes to guest memory and to how its vCPUs begin.
//!
//! A payload tells by its content what it is:
//!
//! | content | entry |
//! |---|---|
//! | ELF with our own note ([`protocol::payload::Note`]) | [`Entry::Direct`]: 64-bit, every vCPU at once; or as the next, if asked |
//! | ELF with a PVH note | [`Entry::Pvh`]: 32-bit, paging off, `hvm_start_info` |
//! | ELF without either | [`Entry::Long`]: 64-bit, identity map, Linux' zero page |
//! | bzImage | [`Entry::Long`]: the same, with the image's own setup header |
//! | anything, if the user says that it is flat | [`Entry::Long`], at 1 MiB |
//!
//! Everything is checked before the first byte is written: a payload that is not right costs one line, no guest.

mod bzimage;
mod elf;
mod error;
mod image;
mod layout;
mod start_info;
mod zero_page;

use std::ops::Range;

use object::read::ReadRef;
use protocol::machine::HIGH_RAM_START;
use protocol::payload::Note;
use protocol::words::Start;

use crate::boot::{self, Entry};
use crate::memory::Ram;

pub use error::{ElfError, LoadError, PayloadError};
pub use image::Image;
pub use layout::{Layout, Segment};

/// A payload, understood, not yet loaded.
#[derive(Debug)]
pub struct Payload {
    image: Image,
    layout: Layout,
}

impl Payload {
    /// Understands `image`; it is a flat binary if the user says so.
    ///
    /// # Errors
    /// [`LoadError::Payload`].
    pub fn parse(image: Image, flat: bool) -> Result<Self, LoadError> {
        let layout = understand(&image.reader(), image.len(), flat);
        match layout {
            Ok(layout) => Ok(Self { image, layout }),
            Err(source) => Err(LoadError::Payload { name: image.name(), source }),
        }
    }

    /// Its note, if it is ours: it knows our words, and reports to us.
    pub fn note(&self) -> Option<Note> {
        self.layout.note
    }

    /// How its vCPUs begin. Only our payload has a choice.
    pub fn entry(&self, start: Start) -> Entry {
        match (self.layout.note, start) {
            (Some(note), Start::Direct) => Entry::Direct(note),
            _ => self.layout.boot_entry,
        }
    }

    /// Loads it, the initrd and what it is booted with into `ram`.
    ///
    /// # Errors
    /// [`LoadError`]; what `ram` holds then is of no use.
    pub fn load(
        &self,
        ram: &Ram,
        vcpus: usize,
        cmdline: &str,
        initrd: Option<&Image>,
    ) -> Result<(), LoadError> {
        let fit = self.layout.check_fit(ram);
        fit.map_err(|source| LoadError::Payload { name: self.image.name(), source })?;
        let most = self.layout.longest_command_line();
        if cmdline.len() > most {
            return Err(LoadError::CommandLine { bytes: cmdline.len(), most });
        }
        for segment in &self.layout.segments {
            // Fresh RAM is zero: what is longer than its content need not be written.
            self.image.load(segment.content.clone(), ram, segment.range.start)?;
        }
        let initrd = initrd.map(|initrd| self.load_initrd(ram, initrd)).transpose()?;
        boot::write_tables(ram, vcpus)?;
        // Our own payload has no use for any of it, and starts without.
        let rsdp = if self.note().is_some() { None } else { Some(boot::write_acpi_tables(ram, vcpus)?) };
        start_info::write(ram, cmdline, initrd.clone(), rsdp)?;
        if let Entry::Long(_) = self.layout.boot_entry {
            zero_page::write(ram, self.layout.setup, initrd, rsdp)?;
        }
        Ok(())
    }

    fn load_initrd(&self, ram: &Ram, initrd: &Image) -> Result<Range<u64>, LoadError> {
        let too_large = || LoadError::InitrdTooLarge { bytes: initrd.len(), mib: ram.mib() };
        let range = self.layout.place_initrd(ram, initrd.len()).ok_or_else(too_large)?;
        initrd.load(0..initrd.len(), ram, range.start)?;
        Ok(range)
    }
}

/// The layout of the image of `length` bytes that `data` reads; of a flat binary, if the user says that it is one.
fn understand<'data>(data: impl ReadRef<'data>, length: u64, flat: bool) -> Result<Layout, PayloadError> {
    let holds = |(offset, magic): (u64, &[u8])| {
        data.read_bytes_at(offset, magic.len() as u64).is_ok_and(|bytes| bytes == magic)
    };
    let layout = if length == 0 {
        return Err(PayloadError::Empty);
    } else if flat {
        let segment =
            Segment { index: 0, range: HIGH_RAM_START..HIGH_RAM_START + length, content: 0..length };
        Layout { segments: vec![segment], note: None, boot_entry: Entry::Long(HIGH_RAM_START), setup: None }
    } else if holds((0, b"\x7fELF")) {
        elf::parse(data)?
    } else if holds(bzimage::MAGIC) {
        bzimage::parse(data, length)?
    } else {
        return Err(PayloadError::Unknown);
    };
    layout.check_shape()?;
    Ok(layout)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8], flat: bool) -> Result<Layout, PayloadError> {
        understand(bytes, bytes.len() as u64, flat)
    }

    #[test]
    fn content_that_is_neither_elf_nor_flat_is_refused() {
        assert_eq!(of(b"hello", false).unwrap_err(), PayloadError::Unknown);
        assert_eq!(of(b"", true).unwrap_err(), PayloadError::Empty);
        let mut bz = vec![0; 0x300];
        bz[0x202..0x206].copy_from_slice(b"HdrS");
        assert!(matches!(of(&bz, false), Err(PayloadError::BzImage(_))));
    }

    #[test]
    fn flat_binary_is_entered_at_1_mib() {
        let flat = of(&[0xf4, 0xf4], true).unwrap();
        assert_eq!(flat.boot_entry, Entry::Long(0x10_0000));
        assert_eq!(
            (flat.segments[0].range.clone(), flat.segments[0].content.clone()),
            (0x10_0000..0x10_0002, 0..2)
        );
    }
}
