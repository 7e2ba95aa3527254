//! What can be wrong with a payload, an initrd or a command line.

use std::io;
use std::ops::Range;
use std::path::PathBuf;

use protocol::payload::ABI_VERSION;

use crate::boot;
use crate::memory::MemoryError;

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
        bytes: u64,
        /// The guest's memory.
        mib: u64,
    },
    /// The command line does not fit.
    #[error("The command line has {bytes} bytes, and this payload takes {most} at most")]
    CommandLine {
        /// Its length.
        bytes: usize,
        /// What fits.
        most: usize,
    },
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
    #[error("neither an ELF file nor a bzImage (a flat binary for 1 MiB needs --flat)")]
    Unknown,
    /// A Linux kernel image that cannot be used.
    #[error("the bzImage is {0} (it takes a 64-bit Linux 3.8 or newer, or the uncompressed vmlinux)")]
    BzImage(&'static str),
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

/// An ELF file that cannot be used.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum ElfError {
    /// The file ends before what its headers promise.
    #[error("the ELF file is damaged or cut short: {0}")]
    Damaged(String),
    /// An ELF file for something else.
    #[error("the ELF file is {0}, and must be a static 64-bit x86-64 executable")]
    WrongKind(&'static str),
    /// Nothing to load.
    #[error("the ELF file has no segment to load")]
    NothingToLoad,
    /// Our note has another size.
    #[error(
        "its note for this monitor is malformed (rebuild it, or write a fresh one with `vmm write-payload`)"
    )]
    BadNote,
}
