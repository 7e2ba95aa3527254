//! ELF files: their segments, and the notes that say how they are entered.

use object::Endianness;
use object::elf::{ELFCLASS64, EM_X86_64, ET_EXEC, FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader, NoteIterator, ProgramHeader};
use protocol::payload::{NOTE_OWNER, NOTE_TYPE, Note};

use super::Segment;
use crate::boot::Entry;

/// Owner and type of the note that makes an ELF file a PVH kernel (`XEN_ELFNOTE_PHYS32_ENTRY`).
const PVH_OWNER: &[u8] = b"Xen";
const PVH_TYPE: u32 = 18;

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

/// An ELF file's segments and entry.
#[derive(Debug)]
pub struct Elf<'a> {
    /// Its loadable segments, at their physical addresses.
    pub segments: Vec<Segment<'a>>,
    /// Our note, if it has one.
    pub note: Option<Note>,
    /// How its boot vCPU is entered, when it is to start the others itself.
    pub boot_entry: Entry,
}

impl<'a> Elf<'a> {
    /// Understands `bytes`.
    ///
    /// # Errors
    /// [`ElfError`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ElfError> {
        let damaged = |error: object::Error| ElfError::Damaged(error.to_string());
        // The class comes first: the header's size depends on it.
        if bytes.get(4).is_some_and(|class| *class != ELFCLASS64) {
            return Err(ElfError::WrongKind("not a 64-bit one"));
        }
        let header = FileHeader64::<Endianness>::parse(bytes).map_err(damaged)?;
        let endian = header.endian().map_err(damaged)?;
        if header.e_machine(endian) != EM_X86_64 {
            return Err(ElfError::WrongKind("for another processor"));
        }
        if header.e_type(endian) != ET_EXEC {
            return Err(ElfError::WrongKind("relocatable or a shared object"));
        }
        let mut segments = Vec::new();
        let mut notes = Notes::default();
        for (index, program) in header.program_headers(endian, bytes).map_err(damaged)?.iter().enumerate() {
            if program.p_type(endian) == PT_LOAD && program.p_memsz(endian) > 0 {
                segments.push(segment(index, program, endian, bytes)?);
            }
            if let Some(iterator) = program.notes(endian, bytes).map_err(damaged)? {
                notes.read(iterator, endian)?;
            }
        }
        if segments.is_empty() {
            return Err(ElfError::NothingToLoad);
        }
        let boot_entry = notes.pvh.map_or_else(|| Entry::Long(header.e_entry(endian)), Entry::Pvh);
        Ok(Self { segments, note: notes.ours, boot_entry })
    }
}

fn segment<'a>(
    index: usize,
    program: &impl ProgramHeader<Endian = Endianness, Word = u64>,
    endian: Endianness,
    bytes: &'a [u8],
) -> Result<Segment<'a>, ElfError> {
    let damaged = |what| ElfError::Damaged(format!("segment {index} {what}"));
    let bytes = program.data(endian, bytes).map_err(|()| damaged("reaches past the end of the file"))?;
    let (start, size) = (program.p_paddr(endian), program.p_memsz(endian));
    if (bytes.len() as u64) > size {
        return Err(damaged("is longer in the file than in memory"));
    }
    let end = start.checked_add(size).ok_or_else(|| damaged("wraps around the address space"))?;
    Ok(Segment { index, range: start..end, bytes })
}

/// The notes that matter.
#[derive(Default)]
struct Notes {
    ours: Option<Note>,
    pvh: Option<u32>,
}

impl Notes {
    fn read(
        &mut self,
        mut notes: NoteIterator<'_, FileHeader64<Endianness>>,
        endian: Endianness,
    ) -> Result<(), ElfError> {
        // A note section that is damaged holds nothing for us; the kernel's own loaders pass it over, too.
        while let Ok(Some(note)) = notes.next() {
            if note.name() == NOTE_OWNER.as_bytes() && note.n_type(endian) == NOTE_TYPE {
                self.ours = Some(Note::from_bytes(note.desc()).ok_or(ElfError::BadNote)?);
            } else if note.name() == PVH_OWNER && note.n_type(endian) == PVH_TYPE {
                // 4 or 8 bytes; the entry is 32-bit either way.
                self.pvh = note.desc().first_chunk().map(|entry| u32::from_le_bytes(*entry));
            }
        }
        Ok(())
    }
}
