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
mod start_info;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::{fs, io};

use protocol::machine::HIGH_RAM_START;
use protocol::payload::{ABI_VERSION, Note};
use protocol::words::Start;

use crate::boot::{self, COMMAND_LINE_MAX, Entry};
use crate::memory::{MemoryError, PAGE, Ram};

pub use elf::{Elf, ElfError};

/// A payload, an initrd or a command line cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file cannot be read.
    #[error("Cannot read {what} {}", path.display())]
    Read {
        /// `payload` or `initrd`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
    /// The payload's content is not right.
    #[error("Payload {name}: {source}")]
    Payload {
        /// The file's name, or that of the embedded payload.
        name: String,
        /// What is wrong.
        source: PayloadError,
    },
    /// The initrd does not fit.
    #[error(
        "The initrd has {bytes} bytes and does not fit beside the payload in {mib} MiB of guest memory (try a larger --memory)"
    )]
    InitrdTooLarge {
        /// Its size.
        bytes: usize,
        /// The guest's memory.
        mib: u64,
    },
    /// The command line does not fit.
    #[error("The command line has {0} bytes, and at most {COMMAND_LINE_MAX} fit")]
    CommandLine(usize),
    /// Guest memory refused a write that was checked before.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// What can be wrong with a payload's content.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PayloadError {
    /// An ELF file that is not right.
    #[error(transparent)]
    Elf(#[from] ElfError),
    /// Nothing we know.
    #[error("not an ELF file (a flat binary for 1 MiB needs --flat)")]
    Unknown,
    /// A Linux kernel image that must be unpacked first.
    #[error("a bzImage, which this version cannot boot (use the uncompressed vmlinux)")]
    BzImage,
    /// Nothing at all.
    #[error("the file is empty")]
    Empty,
    /// A segment has no RAM under it.
    #[error("segment {index} ({:#x}..{:#x}) lies outside the {mib} MiB of guest memory{}", range.start, range.end, suggest_memory(range, *mib))]
    Outside {
        /// The segment's number in the program headers.
        index: usize,
        /// Its guest addresses.
        range: Range<u64>,
        /// The guest's memory.
        mib: u64,
    },
    /// Two segments want the same memory.
    #[error("segments {first} and {second} overlap")]
    Overlap {
        /// The one.
        first: usize,
        /// The other.
        second: usize,
    },
    /// A segment lies where the monitor puts what it boots a guest with.
    #[error("segment {index} ({:#x}..{:#x}) overlaps the boot structures at {:#x}..{:#x}", range.start, range.end, boot::AREA.start, boot::AREA.end)]
    BootArea {
        /// The segment's number in the program headers.
        index: usize,
        /// Its guest addresses.
        range: Range<u64>,
    },
    /// The first instruction would be fetched from memory that nothing was loaded to.
    #[error("the entry {0:#x} lies in none of its segments")]
    EntryOutside(u64),
    /// Our payload, but of another age.
    #[error(
        "built for version {found} of the payload protocol, and this monitor speaks version {ABI_VERSION} (rebuild it, or write a fresh one with `vmm write-payload`)"
    )]
    AbiVersion {
        /// Its version.
        found: u64,
    },
    /// Our payload, but its report would not be in memory.
    #[error("its report at {0:#x} does not lie in guest memory (try a larger --memory)")]
    ReportOutside(u64),
}

fn suggest_memory(range: &Range<u64>, mib: u64) -> String {
    let needed = range.end.div_ceil(1 << 20).next_power_of_two();
    if needed > mib && needed <= 1 << 20 { format!(" (try --memory {needed})") } else { String::new() }
}

/// A payload, read and understood, not yet loaded.
#[derive(Debug)]
pub struct Payload<'a> {
    name: String,
    segments: Vec<Segment<'a>>,
    note: Option<Note>,
    /// How the boot vCPU begins when it is to start the others.
    boot_entry: Entry,
}

/// Bytes to be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Its number in the program headers, for messages.
    pub index: usize,
    /// Where it goes: guest physical addresses, longer than `bytes` where the rest is zero.
    pub range: Range<u64>,
    /// What goes there.
    pub bytes: &'a [u8],
}

/// The whole of `path`.
///
/// # Errors
/// [`LoadError::Read`].
pub fn read_file(what: &'static str, path: &Path) -> Result<Vec<u8>, LoadError> {
    fs::read(path).map_err(|source| LoadError::Read { what, path: path.to_owned(), source })
}

impl<'a> Payload<'a> {
    /// Understands `bytes`; `name` is for messages.
    ///
    /// # Errors
    /// [`LoadError::Payload`].
    pub fn parse(name: &str, bytes: &'a [u8], flat: bool) -> Result<Self, LoadError> {
        let wrong = |source| LoadError::Payload { name: name.to_owned(), source };
        let Elf { segments, note, boot_entry } = if bytes.is_empty() {
            return Err(wrong(PayloadError::Empty));
        } else if flat {
            let range = HIGH_RAM_START..HIGH_RAM_START + bytes.len() as u64;
            let segments = vec![Segment { index: 0, range, bytes }];
            Elf { segments, note: None, boot_entry: Entry::Long(HIGH_RAM_START) }
        } else if bytes.starts_with(b"\x7fELF") {
            Elf::parse(bytes).map_err(|error| wrong(error.into()))?
        } else if bytes.get(0x202..0x206) == Some(b"HdrS") {
            return Err(wrong(PayloadError::BzImage));
        } else {
            return Err(wrong(PayloadError::Unknown));
        };
        let payload = Self { name: name.to_owned(), segments, note, boot_entry };
        payload.check_shape().map_err(wrong)?;
        Ok(payload)
    }

    /// Its note, if it is ours: it knows our words, and reports to us.
    pub fn note(&self) -> Option<Note> {
        self.note
    }

    /// How its vCPUs begin. Only our payload has a choice.
    pub fn entry(&self, start: Start) -> Entry {
        match (self.note, start) {
            (Some(note), Start::Direct) => Entry::Direct(note),
            _ => self.boot_entry,
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
        initrd: Option<&[u8]>,
    ) -> Result<(), LoadError> {
        self.check_fit(ram).map_err(|source| LoadError::Payload { name: self.name.clone(), source })?;
        if cmdline.len() > COMMAND_LINE_MAX {
            return Err(LoadError::CommandLine(cmdline.len()));
        }
        for segment in &self.segments {
            // Fresh RAM is zero: what is longer than the bytes need not be written.
            ram.write(segment.range.start, segment.bytes)?;
        }
        let module = match initrd {
            Some(bytes) => Some(self.load_initrd(ram, bytes)?),
            None => None,
        };
        start_info::write(ram, cmdline, module)?;
        boot::write_tables(ram, vcpus)?;
        Ok(())
    }

    fn check_shape(&self) -> Result<(), PayloadError> {
        for (place, segment) in self.segments.iter().enumerate() {
            if let Some(other) =
                self.segments[..place].iter().find(|other| overlap(&other.range, &segment.range))
            {
                return Err(PayloadError::Overlap { first: other.index, second: segment.index });
            }
        }
        if let Some(Note { abi, .. }) = self.note
            && abi != ABI_VERSION
        {
            return Err(PayloadError::AbiVersion { found: abi });
        }
        let boot_entry = match self.boot_entry {
            Entry::Direct(Note { entry, .. }) | Entry::Long(entry) => entry,
            Entry::Pvh(entry) => u64::from(entry),
        };
        let outside = |entry: &u64| !self.segments.iter().any(|segment| segment.range.contains(entry));
        let mut entries = self.note.map(|note| note.entry).into_iter().chain([boot_entry]);
        entries.find(outside).map_or(Ok(()), |entry| Err(PayloadError::EntryOutside(entry)))
    }

    fn check_fit(&self, ram: &Ram) -> Result<(), PayloadError> {
        for Segment { index, range, .. } in &self.segments {
            if !ram.holds(range) {
                return Err(PayloadError::Outside { index: *index, range: range.clone(), mib: ram.mib() });
            }
            if overlap(range, &boot::AREA) {
                return Err(PayloadError::BootArea { index: *index, range: range.clone() });
            }
        }
        match self.note {
            Some(note) if ram.report(note.report).is_none() => Err(PayloadError::ReportOutside(note.report)),
            _ => Ok(()),
        }
    }

    /// Puts the initrd as high as it can go in the first range of RAM, page aligned.
    fn load_initrd(&self, ram: &Ram, bytes: &[u8]) -> Result<Range<u64>, LoadError> {
        let too_large = || LoadError::InitrdTooLarge { bytes: bytes.len(), mib: ram.mib() };
        let end = ram.ranges().next().map_or(0, |range| range.end);
        let start = end.checked_sub(bytes.len() as u64).ok_or_else(too_large)? & !(PAGE - 1);
        let range = start..start + bytes.len() as u64;
        if start < HIGH_RAM_START || self.segments.iter().any(|segment| overlap(&segment.range, &range)) {
            return Err(too_large());
        }
        ram.write(range.start, bytes)?;
        Ok(range)
    }
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(segments: &[Range<u64>], boot_entry: Entry) -> Payload<'static> {
        let segments = segments.iter().enumerate();
        let segments =
            segments.map(|(index, range)| Segment { index, range: range.clone(), bytes: &[] }).collect();
        Payload { name: "test".into(), segments, note: None, boot_entry }
    }

    #[test]
    fn content_that_is_neither_elf_nor_flat_is_refused_by_name() {
        let message = |bytes: &[u8]| Payload::parse("x.bin", bytes, false).unwrap_err().to_string();
        assert_eq!(
            message(b"hello"),
            "Payload x.bin: not an ELF file (a flat binary for 1 MiB needs --flat)"
        );
        assert_eq!(message(b""), "Payload x.bin: the file is empty");
        let mut bz = vec![0; 0x300];
        bz[0x202..0x206].copy_from_slice(b"HdrS");
        assert!(message(&bz).contains("bzImage"));
    }

    #[test]
    fn flat_binary_is_entered_at_1_mib() {
        let flat = Payload::parse("x", &[0xf4], true).unwrap();
        assert_eq!(flat.entry(Start::Direct), Entry::Long(0x10_0000));
    }

    #[test]
    fn overlapping_segments_are_named() {
        let error = payload(
            &[0x10_0000..0x10_1000, 0x20_0000..0x20_1000, 0x10_0fff..0x10_2000],
            Entry::Long(0x10_0000),
        );
        assert_eq!(error.check_shape(), Err(PayloadError::Overlap { first: 0, second: 2 }));
    }

    #[test]
    fn entry_outside_every_segment_is_refused() {
        let segments = [0x10_0000..0x10_1000];
        assert_eq!(
            payload(&segments, Entry::Long(0x10_1000)).check_shape(),
            Err(PayloadError::EntryOutside(0x10_1000))
        );
        assert_eq!(
            payload(&segments, Entry::Pvh(0xf_ffff)).check_shape(),
            Err(PayloadError::EntryOutside(0xf_ffff))
        );
        assert_eq!(payload(&segments, Entry::Pvh(0x10_0fff)).check_shape(), Ok(()));
    }

    #[test]
    fn note_of_another_version_is_refused() {
        let note = Note { abi: 99, entry: 0x10_0000, report: 0 };
        let mut payload = payload(std::slice::from_ref(&(0x10_0000..0x10_1000)), Entry::Pvh(0x10_0000));
        payload.note = Some(note);
        assert_eq!(payload.check_shape(), Err(PayloadError::AbiVersion { found: 99 }));
        payload.note = Some(Note { abi: ABI_VERSION, entry: 1, report: 0 });
        assert_eq!(payload.check_shape(), Err(PayloadError::EntryOutside(1)));
    }

    #[test]
    fn segment_outside_ram_suggests_a_size_that_fits() {
        let ram = Ram::new(64).unwrap();
        let far = payload(std::slice::from_ref(&(0x400_0000..0x410_0000)), Entry::Long(0x400_0000));
        assert_eq!(
            far.check_fit(&ram).unwrap_err().to_string(),
            "segment 0 (0x4000000..0x4100000) lies outside the 64 MiB of guest memory (try --memory 128)"
        );
        let wild = payload(std::slice::from_ref(&(u64::MAX - 10..u64::MAX)), Entry::Long(u64::MAX - 10));
        assert!(!wild.check_fit(&ram).unwrap_err().to_string().contains("try"));
    }

    #[test]
    fn segment_over_the_boot_structures_is_refused() {
        let ram = Ram::new(64).unwrap();
        let low = payload(std::slice::from_ref(&(0x7c00..0x7e00)), Entry::Long(0x7c00));
        assert!(matches!(low.check_fit(&ram), Err(PayloadError::BootArea { index: 0, .. })));
    }

    #[test]
    fn initrd_lies_at_the_top_and_never_on_a_segment() {
        let ram = Ram::new(2).unwrap();
        let payload = payload(std::slice::from_ref(&(0x10_0000..0x11_0000)), Entry::Long(0x10_0000));
        assert_eq!(payload.load_initrd(&ram, &[1; 5000]).unwrap(), 0x1f_e000..0x1f_f388);
        assert!(payload.load_initrd(&ram, &vec![0; 0xf_0001]).is_err());
        assert!(payload.load_initrd(&ram, &vec![0; 0x30_0000]).is_err());
    }
}
