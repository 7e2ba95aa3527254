//! Loading: from a payload's bytes to guest memory and to how its vCPUs begin.
//!
//! A payload tells by its content what it is:
//!
//! | content | entry |
//! |---|---|
//! | ELF with our own note ([`protocol::payload::Note`]) | [`Entry::Direct`]: 64-bit, every vCPU at once; or as the next, if asked |
//! | ELF with a PVH note | [`Entry::Pvh`]: 32-bit, paging off, `hvm_start_info` |
//! | ELF without either | [`Entry::Long`]: 64-bit, identity map |
//! | anything, if the user says that it is flat | [`Entry::Long`], at 1 MiB |
//!
//! Everything is checked before the first byte is written: a payload that is not right costs one line, no guest.

mod elf;
mod error;
mod image;
mod layout;
mod start_info;

use std::ops::Range;

use protocol::payload::Note;
use protocol::words::Start;

use crate::boot::{self, COMMAND_LINE_MAX, Entry};
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
        let layout = Layout::of(&image.reader(), image.len(), flat);
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
        if cmdline.len() > COMMAND_LINE_MAX {
            return Err(LoadError::CommandLine(cmdline.len()));
        }
        for segment in &self.layout.segments {
            // Fresh RAM is zero: what is longer than its content need not be written.
            self.image.load(segment.content.clone(), ram, segment.range.start)?;
        }
        let module = initrd.map(|initrd| self.load_initrd(ram, initrd)).transpose()?;
        start_info::write(ram, cmdline, module)?;
        boot::write_tables(ram, vcpus)?;
        Ok(())
    }

    fn load_initrd(&self, ram: &Ram, initrd: &Image) -> Result<Range<u64>, LoadError> {
        let too_large = || LoadError::InitrdTooLarge { bytes: initrd.len(), mib: ram.mib() };
        let range = self.layout.place_initrd(ram, initrd.len()).ok_or_else(too_large)?;
        initrd.load(0..initrd.len(), ram, range.start)?;
        Ok(range)
    }
}
