//! Loading: copies a payload into guest memory and determines how its vCPUs start.
//!
//! The content of the payload selects the boot protocol:
//!
//! | content | entry |
//! |---|---|
//! | ELF with our [`Note`] | [`Entry::Direct`]: 64-bit, every vCPU at once; PVH on request |
//! | ELF with a PVH note | [`Entry::Pvh`]: 32-bit, paging off, `hvm_start_info` |
//! | ELF without either | [`Entry::Long`]: 64-bit, identity map, Linux zero page |
//! | bzImage | [`Entry::Long`]: the same, with the setup header of the image |
//! | any, with `--flat` | [`Entry::Long`], at 1 MiB |
//!
//! All checks precede the first write, so an invalid payload fails with one message. The structures
//! of ELF files, bzImages and boot parameters are those of the `linux-loader` crate.

mod boot_params;
mod bzimage;
mod elf;
mod image;
mod layout;
mod notes;
#[cfg(test)]
mod properties;

use std::ops::Range;

use protocol::payload::machine::HIGH_RAM_START;
use protocol::payload::note::Note;
use protocol::payload::params::Start;

use crate::boot::low_memory::COMMAND_LINE;
use crate::boot::{self, Entry};
use crate::error::VmmError;
use crate::memory::Ram;

use boot_params::BootInfo;
use layout::{Layout, Segment};

pub use image::Image;

/// A parsed payload that is not loaded yet.
#[derive(Debug)]
pub struct Payload {
    image: Image,
    layout: Layout,
}

impl Payload {
    /// Parses `image`, as a flat binary if `flat` is set.
    ///
    /// # Errors
    /// [`VmmError::Load`] when the content is no payload.
    pub fn parse(image: Image, flat: bool) -> Result<Self, VmmError> {
        match parse(&image, flat) {
            Ok(layout) => Ok(Self { image, layout }),
            Err(defect) => Err(unusable(&image, &defect)),
        }
    }

    /// Returns the path of the file, or `(embedded)`.
    pub fn name(&self) -> String {
        self.image.name()
    }

    /// Returns the note of our own payload; `None` for any other.
    pub fn note(&self) -> Option<Note> {
        self.layout.note
    }

    /// Returns how the vCPUs start. Only our own payload supports [`Start::Direct`].
    pub fn entry(&self, start: Start) -> Entry {
        match (self.layout.note, start) {
            (Some(note), Start::Direct) => Entry::Direct(note),
            _ => self.layout.boot_entry,
        }
    }

    /// Loads the payload, the initrd and the boot structures into fresh `ram`.
    ///
    /// # Errors
    /// [`VmmError`]; the content of `ram` is then undefined.
    pub fn load(
        &self,
        ram: &Ram,
        vcpus: usize,
        cmdline: &str,
        initrd: Option<&Image>,
    ) -> Result<(), VmmError> {
        let fit = self.layout.check_fit(ram);
        fit.map_err(|defect| unusable(&self.image, &defect))?;
        let max = self.layout.max_command_line();
        if cmdline.len() > max {
            return Err(VmmError::Load(format!(
                "The command line has {} bytes: the payload accepts up to {max} (shorten --cmdline)",
                cmdline.len()
            )));
        }
        for Segment { range, content, .. } in &self.layout.segments {
            // Fresh RAM is zero, so the end of a segment without content needs no write.
            self.image.load(content.clone(), ram, range.start)?;
        }
        let initrd = initrd.map(|initrd| self.load_initrd(ram, initrd)).transpose()?;
        boot::write_tables(ram, vcpus)?;
        // Our own payload does not use ACPI; omitting it shortens the start.
        let rsdp = if self.note().is_some() { 0 } else { boot::write_acpi_tables(ram, vcpus)? };
        ram.write(COMMAND_LINE, cmdline.as_bytes())?;
        ram.write(COMMAND_LINE + cmdline.len() as u64, &[0])?;
        let info = BootInfo { initrd, rsdp };
        let refused = || VmmError::cannot("write the boot parameters to guest memory");
        boot_params::write_pvh(ram, &info).map_err(refused())?;
        if let Entry::Long(_) = self.layout.boot_entry {
            boot_params::write_linux(ram, self.layout.setup, &info).map_err(refused())?;
        }
        Ok(())
    }

    fn load_initrd(&self, ram: &Ram, initrd: &Image) -> Result<Range<u64>, VmmError> {
        let too_large = || {
            VmmError::Load(format!(
                "The initrd has {} bytes: it does not fit beside the payload in {} MiB of guest memory \
                 (try a larger --memory)",
                initrd.len(),
                ram.mib()
            ))
        };
        let range = self.layout.place_initrd(ram, initrd.len()).ok_or_else(too_large)?;
        initrd.load(0..initrd.len(), ram, range.start)?;
        Ok(range)
    }
}

/// Returns the error for a payload that has `defect`.
fn unusable(image: &Image, defect: &str) -> VmmError {
    VmmError::Load(format!("Payload {}: {defect}", image.name()))
}

/// Returns the layout of `image`, or the defect that prevents its use.
fn parse(image: &Image, flat: bool) -> Result<Layout, String> {
    let length = image.len();
    let layout = if length == 0 {
        return Err("the file is empty".into());
    } else if flat {
        let segment =
            Segment { index: 0, range: HIGH_RAM_START..HIGH_RAM_START + length, content: 0..length };
        Layout { segments: vec![segment], note: None, boot_entry: Entry::Long(HIGH_RAM_START), setup: None }
    } else if image.read_object(0).is_ok_and(|magic: [u8; 4]| magic == *b"\x7fELF") {
        elf::parse(image)?
    } else if image.read_object(bzimage::MAGIC_OFFSET).is_ok_and(|magic: [u8; 4]| magic == *b"HdrS") {
        bzimage::parse(image)?
    } else {
        return Err("neither an ELF file nor a bzImage (a flat binary for 1 MiB needs --flat)".into());
    };
    layout.check_consistency()?;
    Ok(layout)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout_of(bytes: &[u8], flat: bool) -> Result<Layout, String> {
        parse(&Image::from_bytes("test", bytes.to_vec()), flat)
    }

    #[test]
    fn content_of_unknown_format_is_refused() {
        assert!(layout_of(b"hello", false).unwrap_err().starts_with("neither an ELF file nor a bzImage"));
        assert_eq!(layout_of(b"", true).unwrap_err(), "the file is empty");
        let mut bz = vec![0; 0x300];
        bz[0x202..0x206].copy_from_slice(b"HdrS");
        assert!(layout_of(&bz, false).unwrap_err().starts_with("the bzImage is "));
    }

    #[test]
    fn flat_binary_is_entered_at_1_mib() {
        let flat = layout_of(&[0xf4, 0xf4], true).unwrap();
        assert_eq!(flat.boot_entry, Entry::Long(0x10_0000));
        assert_eq!(
            (flat.segments[0].range.clone(), flat.segments[0].content.clone()),
            (0x10_0000..0x10_0002, 0..2)
        );
    }
}
