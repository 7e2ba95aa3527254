//! ELF executables: their segments, and the notes that select the entry.

use linux_loader::elf::{
    EI_CLASS, EI_DATA, ELFCLASS64, ELFDATA2LSB, EM_X86_64, ET_EXEC, Elf64_Ehdr, Elf64_Phdr, PT_LOAD, PT_NOTE,
};
use protocol::payload::note::{NOTE_OWNER, NOTE_TYPE, Note};

use super::image::Image;
use super::layout::{Layout, Segment};
use super::notes::RawNote;
use crate::boot::Entry;

/// Owner and type of a PVH note (`XEN_ELFNOTE_PHYS32_ENTRY`).
const PVH_OWNER: &str = "Xen";
const PVH_TYPE: u32 = 18;

/// Maximum size of all note segments together (bytes). A file may claim more than the host has
/// memory, or the same bytes thousands of times.
const MAX_NOTES: u64 = 64 << 10;

/// Parses the ELF file `image`.
///
/// # Errors
/// The defect that prevents its use.
pub(super) fn parse(image: &Image) -> Result<Layout, String> {
    let header: Elf64_Ehdr = image.read_object(0).map_err(damaged)?;
    let wrong = if header.e_ident[EI_CLASS] != ELFCLASS64 {
        Some("not a 64-bit one")
    } else if header.e_ident[EI_DATA] != ELFDATA2LSB || header.e_machine != EM_X86_64 {
        Some("for another processor")
    } else if header.e_type != ET_EXEC {
        Some("relocatable or a shared object")
    } else {
        None
    };
    if let Some(kind) = wrong {
        return Err(format!("the ELF file is {kind}, and must be a static 64-bit x86-64 executable"));
    }
    if header.e_phnum > 0 && usize::from(header.e_phentsize) != size_of::<Elf64_Phdr>() {
        return Err(damaged("its program headers have the wrong size"));
    }
    let mut segments = Vec::new();
    let mut notes = Notes::default();
    for index in 0..usize::from(header.e_phnum) {
        let offset = header.e_phoff.checked_add((index * size_of::<Elf64_Phdr>()) as u64);
        let offset = offset.ok_or_else(|| damaged("its program headers lie past its end"))?;
        let program: Elf64_Phdr = image.read_object(offset).map_err(damaged)?;
        match program.p_type {
            PT_LOAD => segments.extend(segment(index, &program, image.len())?),
            PT_NOTE => notes.read(image, &program)?,
            _ => {}
        }
    }
    if segments.is_empty() {
        return Err("the ELF file has no segment to load".into());
    }
    let boot_entry = notes.pvh.map_or(Entry::Long(header.e_entry), Entry::Pvh);
    Ok(Layout { segments, note: notes.own, boot_entry, setup: None })
}

fn damaged(what: impl std::fmt::Display) -> String {
    format!("the ELF file is damaged or cut short: {what}")
}

/// Returns a segment; `None` for one without memory. No bytes of the file are read for one without
/// content, so its offset may be anything.
fn segment(index: usize, program: &Elf64_Phdr, file_length: u64) -> Result<Option<Segment>, String> {
    let damaged = |what| damaged(format_args!("segment {index} {what}"));
    let Elf64_Phdr { p_offset: offset, p_filesz: content, p_paddr: start, p_memsz: size, .. } = *program;
    if content > size {
        return Err(damaged("is longer in the file than in memory"));
    }
    let content = match content {
        0 => 0..0,
        _ => offset..offset.saturating_add(content),
    };
    if content.end > file_length {
        return Err(damaged("reaches past the end of the file"));
    }
    let end = start.checked_add(size).ok_or_else(|| damaged("wraps around the address space"))?;
    Ok((size > 0).then_some(Segment { index, range: start..end, content }))
}

/// The notes that select an entry. Of several of a kind, the first is taken.
#[derive(Default)]
struct Notes {
    /// Our own note.
    own: Option<Note>,
    /// The PVH entry.
    pvh: Option<u32>,
    /// Size of the segments so far (bytes).
    size: u64,
}

impl Notes {
    /// Reads the note segment `program`.
    fn read(&mut self, image: &Image, program: &Elf64_Phdr) -> Result<(), String> {
        if program.p_filesz == 0 {
            return Ok(());
        }
        self.size = self.size.saturating_add(program.p_filesz);
        if self.size > MAX_NOTES {
            return Err(damaged(format_args!("its notes have more than {MAX_NOTES} bytes")));
        }
        let mut bytes = vec![0; usize::try_from(program.p_filesz).map_err(damaged)?];
        image.read_at(program.p_offset, &mut bytes).map_err(damaged)?;
        for note in RawNote::all_of(&bytes, program.p_align) {
            if note.is(NOTE_OWNER, NOTE_TYPE) {
                let own = Note::from_bytes(note.descriptor).ok_or(
                    "its note for this monitor is malformed (rebuild it, or write a fresh one with `vmm-lab write-payload`)",
                )?;
                self.own.get_or_insert(own);
            } else if note.is(PVH_OWNER, PVH_TYPE) {
                // The descriptor has 4 or 8 bytes; the entry is a 32-bit address in both.
                self.pvh = self.pvh.or(note.descriptor.first_chunk().map(|entry| u32::from_le_bytes(*entry)));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::notes::tests::note as note_in;
    use super::*;

    /// An executable of one byte with note segments that have these contents and sizes.
    fn with_notes(notes: &[(&[u8], u64)]) -> Image {
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
        for word in [0x10_0000_u64, 64, 0] {
            file.extend_from_slice(&word.to_le_bytes());
        }
        let headers = 1 + u8::try_from(notes.len()).unwrap();
        file.extend_from_slice(&[0, 0, 0, 0, 64, 0, 56, 0, headers, 0, 64, 0, 0, 0, 0, 0]);
        let mut header = |kind: u32, [offset, address, size]: [u64; 3]| {
            file.extend_from_slice(&kind.to_le_bytes());
            file.extend_from_slice(&7_u32.to_le_bytes());
            for word in [offset, address, address, size, size, 4] {
                file.extend_from_slice(&word.to_le_bytes());
            }
        };
        header(PT_LOAD, [0, 0x10_0000, 1]);
        for (offset, (_, size)) in (1_u64..).zip(notes) {
            header(PT_NOTE, [offset << 10, 0, *size]);
        }
        file.resize(1 << 20, 0);
        for (offset, (note, _)) in (1..).zip(notes) {
            file[offset << 10..][..note.len()].copy_from_slice(note);
        }
        Image::from_bytes("test", file)
    }

    fn note(owner: &[u8], kind: u32, descriptor: &[u8]) -> Vec<u8> {
        note_in(owner, kind, descriptor, 4)
    }

    /// The bytes of an executable with one note segment, in which the word at `offset` of program
    /// header `index` is `value`.
    fn with_word(note: &[u8], index: usize, offset: usize, value: u64) -> Image {
        let image = with_notes(&[(note, note.len() as u64)]);
        let mut bytes = vec![0; usize::try_from(image.len()).unwrap()];
        image.read_at(0, &mut bytes).unwrap();
        let at = 64 + 56 * index + offset;
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        Image::from_bytes("test", bytes)
    }

    const P_OFFSET: usize = 8;
    const P_FILESZ: usize = 32;
    const P_MEMSZ: usize = 40;
    const P_ALIGN: usize = 48;

    #[test]
    fn note_segment_of_excessive_size_is_refused() {
        assert!(parse(&with_notes(&[(&[], 1000)])).is_ok());
        for notes in [vec![(&[][..], MAX_NOTES + 1)], vec![(&[][..], 1000); 66]] {
            let refused = parse(&with_notes(&notes)).unwrap_err();
            assert!(refused.starts_with("the ELF file is damaged or cut short"), "{refused}");
        }
    }

    #[test]
    fn pvh_note_is_found_in_a_note_segment_of_any_alignment_and_layout() {
        for layout in [4, 8, 16, 4096] {
            let other = note_in(b"Linux\0", 257, &[1; 4], layout);
            let pvh = note_in(b"Xen\0", 18, &0x10_0000_u32.to_le_bytes(), layout);
            let image = with_word(&[other, pvh].concat(), 1, P_ALIGN, layout as u64);
            assert_eq!(parse(&image).unwrap().boot_entry, Entry::Pvh(0x10_0000), "{layout}");
        }
        let kernel = [note(b"GNU\0", 3, &[1; 20]), note(b"Xen\0", 18, &[0, 0, 0x10, 0])].concat();
        for p_align in [0, 1, 4, 8, 16, 64, 4096] {
            let image = with_word(&kernel, 1, P_ALIGN, p_align);
            assert_eq!(parse(&image).unwrap().boot_entry, Entry::Pvh(0x10_0000), "{p_align}");
        }
    }

    #[test]
    fn segment_without_content_is_accepted_wherever_its_offset_lies() {
        for offset in [0, 1 << 20, 1 << 40, u64::MAX] {
            let mut image = with_word(&[], 0, P_OFFSET, offset);
            assert!(parse(&image).is_err() == (offset != 0), "one byte at {offset:#x}");
            image = with_word(&[], 1, P_OFFSET, offset);
            assert!(parse(&image).is_ok(), "an empty note segment at {offset:#x}");
        }
        let mut bytes = vec![0; 0x1000];
        with_word(&[], 0, P_FILESZ, 0).read_at(0, &mut bytes).unwrap();
        bytes[64 + P_OFFSET..][..8].copy_from_slice(&(1_u64 << 40).to_le_bytes());
        let layout = parse(&Image::from_bytes("test", bytes)).unwrap();
        assert_eq!(
            (layout.segments[0].range.clone(), layout.segments[0].content.clone()),
            (0x10_0000..0x10_0001, 0..0)
        );
    }

    #[test]
    fn segment_longer_in_the_file_than_in_memory_or_around_the_address_space_is_refused() {
        for (word, value, what) in [
            (P_MEMSZ, 0, "is longer in the file"),
            (P_MEMSZ, u64::MAX, "wraps around"),
            (P_FILESZ, u64::MAX, "longer"),
        ] {
            let refused = parse(&with_word(&[], 0, word, value)).unwrap_err();
            assert!(refused.contains("segment 0") && refused.contains(what), "{refused}");
        }
    }

    #[test]
    fn pvh_note_is_found_behind_other_notes_and_in_any_note_segment() {
        let other = note(b"GNU\0", 3, &[1; 20]);
        let pvh = note(b"Xen\0", 18, &0x10_0000_u64.to_le_bytes());
        let both = [other.as_slice(), pvh.as_slice()].concat();
        let size = |note: &[u8]| note.len() as u64;
        let behind = with_notes(&[(&both, size(&both))]);
        // linux-loader's parser keeps the result of the last note segment only.
        let first_of_two = with_notes(&[(&pvh, size(&pvh)), (&other, size(&other))]);
        for image in [behind, first_of_two] {
            assert_eq!(parse(&image).unwrap().boot_entry, Entry::Pvh(0x10_0000));
        }
        let of_another_owner = note(b"Xem\0", 18, &[0; 8]);
        let image = with_notes(&[(&of_another_owner, size(&of_another_owner))]);
        assert_eq!(parse(&image).unwrap().boot_entry, Entry::Long(0x10_0000));
    }

    #[test]
    fn damaged_note_is_ignored_and_a_malformed_one_of_ours_is_refused() {
        let mut cut = note(b"Xen\0", 18, &[0; 8]);
        cut.truncate(20);
        let image = with_notes(&[(&cut, 20)]);
        assert_eq!(parse(&image).unwrap().boot_entry, Entry::Long(0x10_0000));
        let own = note(b"vmm\0", NOTE_TYPE, &[0; 8]);
        let refused = parse(&with_notes(&[(&own, own.len() as u64)])).unwrap_err();
        assert!(refused.contains("malformed"), "{refused}");
    }
}
