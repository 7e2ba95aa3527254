//! ELF files: their segments, and the notes that say how they are entered.

use std::ops::Range;

use object::Endianness;
use object::elf::{ELFCLASS64, EM_X86_64, ET_EXEC, FileHeader64, PT_LOAD};
use object::read::ReadRef;
use object::read::elf::{FileHeader, NoteIterator, ProgramHeader};
use protocol::payload::{NOTE_OWNER, NOTE_TYPE, Note};

use super::error::ElfError;
use super::layout::{Layout, Segment};
use crate::boot::Entry;

/// Owner and type of the note that makes an ELF file a PVH kernel (`XEN_ELFNOTE_PHYS32_ENTRY`).
const PVH_OWNER: &[u8] = b"Xen";
const PVH_TYPE: u32 = 18;

/// So much is read of a file at once (bytes). Headers and notes are small; a file that says otherwise of its own may be
/// larger than this machine's memory.
const MOST_AT_ONCE: u64 = 64 << 10;

/// Reads a little at a time.
#[derive(Clone, Copy)]
struct Frugal<R>(R);

impl<'data, R: ReadRef<'data>> ReadRef<'data> for Frugal<R> {
    fn len(self) -> Result<u64, ()> {
        self.0.len()
    }

    fn read_bytes_at(self, offset: u64, size: u64) -> Result<&'data [u8], ()> {
        if size > MOST_AT_ONCE { Err(()) } else { self.0.read_bytes_at(offset, size) }
    }

    fn read_bytes_at_until(self, range: Range<u64>, delimiter: u8) -> Result<&'data [u8], ()> {
        if range.end.saturating_sub(range.start) > MOST_AT_ONCE {
            return Err(());
        }
        self.0.read_bytes_at_until(range, delimiter)
    }
}

/// Understands the file that `data` reads.
///
/// # Errors
/// [`ElfError`].
pub(super) fn parse<'data>(data: impl ReadRef<'data>) -> Result<Layout, ElfError> {
    let data = Frugal(data);
    let damaged = |error: object::Error| ElfError::Damaged(error.to_string());
    // The class comes first: the header's size depends on it.
    if data.read_bytes_at(4, 1).is_ok_and(|class| class != [ELFCLASS64]) {
        return Err(ElfError::WrongKind("not a 64-bit one"));
    }
    let header = FileHeader64::<Endianness>::parse(data).map_err(damaged)?;
    let endian = header.endian().map_err(damaged)?;
    if header.e_machine(endian) != EM_X86_64 {
        return Err(ElfError::WrongKind("for another processor"));
    }
    if header.e_type(endian) != ET_EXEC {
        return Err(ElfError::WrongKind("relocatable or a shared object"));
    }
    let length = data.len().map_err(|()| ElfError::Damaged("it cannot be read".to_owned()))?;
    let mut segments = Vec::new();
    let mut notes = Notes::default();
    for (index, program) in header.program_headers(endian, data).map_err(damaged)?.iter().enumerate() {
        if program.p_type(endian) == PT_LOAD && program.p_memsz(endian) > 0 {
            segments.push(segment(index, program, endian, length)?);
        }
        if let Some(iterator) = program.notes(endian, data).map_err(damaged)? {
            notes.read(iterator, endian)?;
        }
    }
    if segments.is_empty() {
        return Err(ElfError::NothingToLoad);
    }
    let boot_entry = notes.pvh.map_or_else(|| Entry::Long(header.e_entry(endian)), Entry::Pvh);
    Ok(Layout { segments, note: notes.ours, boot_entry, setup: None })
}

fn segment(
    index: usize,
    program: &impl ProgramHeader<Endian = Endianness, Word = u64>,
    endian: Endianness,
    file_length: u64,
) -> Result<Segment, ElfError> {
    let damaged = |what| ElfError::Damaged(format!("segment {index} {what}"));
    let (offset, content) = program.file_range(endian);
    let content_end = offset.checked_add(content).filter(|end| *end <= file_length);
    let content_end = content_end.ok_or_else(|| damaged("reaches past the end of the file"))?;
    let (start, size) = (program.p_paddr(endian), program.p_memsz(endian));
    if content > size {
        return Err(damaged("is longer in the file than in memory"));
    }
    let end = start.checked_add(size).ok_or_else(|| damaged("wraps around the address space"))?;
    Ok(Segment { index, range: start..end, content: offset..content_end })
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

#[cfg(test)]
mod tests {
    use super::*;

    /// An executable of one byte, and a note that is said to have `note_size` bytes, in a file that is long enough.
    fn with_note_of(note_size: u64) -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
        for word in [0x10_0000_u64, 64, 0] {
            file.extend_from_slice(&word.to_le_bytes());
        }
        file.extend_from_slice(&[0, 0, 0, 0, 64, 0, 56, 0, 2, 0, 64, 0, 0, 0, 0, 0]);
        let (load, note) = ([1_u32, 7], [4_u32, 4]);
        for (kind, address, size) in [(load, 0x10_0000_u64, 1), (note, 0, note_size)] {
            for half in kind {
                file.extend_from_slice(&half.to_le_bytes());
            }
            for word in [176, address, address, size, size, 4] {
                file.extend_from_slice(&word.to_le_bytes());
            }
        }
        file.resize(1 << 20, 0);
        file
    }

    #[test]
    fn note_that_is_said_to_be_huge_is_not_read() {
        assert!(parse(with_note_of(1000).as_slice()).is_ok());
        let refused = parse(with_note_of(MOST_AT_ONCE + 1).as_slice());
        assert!(matches!(refused, Err(ElfError::Damaged(_))), "{refused:?}");
    }
}
