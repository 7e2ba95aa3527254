//! ELF notes: splits a note segment into its notes.
//!
//! Two layouts are in use. Kernels align names and descriptors to 4 bytes, whatever the alignment
//! of the segment is; GNU ld gives a segment the largest alignment of its sections. The gABI aligns
//! them to that alignment. The declared layout is taken if it fits the whole segment, padding
//! included, else that of 4 bytes. Zeroes between notes are padding: a note has a name, so its
//! first word is not 0.
//!
//! Sources: ELF gABI, "Note Section"; binutils `elf_parse_notes`; Linux `include/linux/elfnote.h`.

use std::ops::Range;

use crate::memory::PAGE_SIZE;

/// A note, as it lies in its segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RawNote<'a> {
    owner: &'a [u8],
    kind: u32,
    /// Its content.
    pub(super) descriptor: &'a [u8],
}

/// Size of a note's header (bytes): the sizes of name and descriptor, and the type.
const HEADER: usize = 12;
/// Alignment of names and descriptors in notes of a kernel (bytes).
const WORD: usize = 4;

impl<'a> RawNote<'a> {
    /// Returns the notes of a segment that consists of `bytes` and declares the alignment
    /// `p_align`. A damaged note ends them, as in Linux.
    pub(super) fn all_of(bytes: &'a [u8], p_align: u64) -> Vec<Self> {
        let declared = usize::try_from(p_align).unwrap_or(0);
        let (notes, is_whole) = if declared.is_power_of_two() && (WORD..=PAGE_SIZE).contains(&declared) {
            Self::in_layout(bytes, declared)
        } else {
            (Vec::new(), false)
        };
        if is_whole { notes } else { Self::in_layout(bytes, WORD).0 }
    }

    /// Returns whether this note has this owner and type.
    pub(super) fn is(&self, owner: &str, kind: u32) -> bool {
        self.owner.strip_suffix(b"\0") == Some(owner.as_bytes()) && self.kind == kind
    }

    /// Returns the notes in the layout of `align`, and whether it fits the whole segment.
    fn in_layout(bytes: &'a [u8], align: usize) -> (Vec<Self>, bool) {
        let (mut notes, mut at, mut is_whole) = (Vec::new(), 0, true);
        while let Some(first_word) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            if first_word.iter().take(WORD).all(|byte| *byte == 0) {
                at += WORD;
                continue;
            }
            let Some((note, extent)) = Self::at(bytes, at, align) else { return (notes, false) };
            is_whole &= note.owner.ends_with(b"\0") && extent.is_padded;
            notes.push(note);
            at = extent.end;
        }
        (notes, is_whole)
    }

    /// Returns the note at offset `start`; `None` if it reaches past the end.
    fn at(bytes: &'a [u8], start: usize, align: usize) -> Option<(Self, Extent)> {
        let (header, _) = bytes.get(start..)?.as_chunks::<4>();
        let [name_size, size, kind, ..] = *header else { return None };
        let [name_size, size] = [name_size, size].map(|size| u32::from_le_bytes(size) as usize);
        let owner = start + HEADER..start + HEADER + name_size;
        let content = start + (HEADER + name_size).next_multiple_of(align);
        let content = content..content + size;
        let end = start + (content.end - start).next_multiple_of(align);
        let is_zero = |padding: Range<usize>| {
            bytes[padding.start.min(bytes.len())..padding.end.min(bytes.len())].iter().all(|byte| *byte == 0)
        };
        let extent =
            Extent { end, is_padded: is_zero(owner.end..content.start) && is_zero(content.end..end) };
        let (owner, descriptor) = (bytes.get(owner)?, bytes.get(content)?);
        Some((Self { owner, kind: u32::from_le_bytes(kind), descriptor }, extent))
    }
}

/// The extent of a note in its segment.
struct Extent {
    /// Offset behind the note and its padding.
    end: usize,
    /// Whether its padding is zero.
    is_padded: bool,
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A note in the layout of `align`.
    pub(in super::super) fn note(owner: &[u8], kind: u32, descriptor: &[u8], align: usize) -> Vec<u8> {
        let mut note = Vec::new();
        for word in [u32::try_from(owner.len()).unwrap(), u32::try_from(descriptor.len()).unwrap(), kind] {
            note.extend_from_slice(&word.to_le_bytes());
        }
        for part in [owner, descriptor] {
            note.extend_from_slice(part);
            note.resize(note.len().next_multiple_of(align), 0);
        }
        note
    }

    fn kinds(bytes: &[u8], p_align: u64) -> Vec<u32> {
        RawNote::all_of(bytes, p_align).iter().map(|note| note.kind).collect()
    }

    #[test]
    fn notes_are_found_in_both_layouts_of_every_declared_alignment() {
        let of = |align| {
            let owners = [&b"GNU\0"[..], b"Linux\0", b"FreeBSD\0", b"Xen\0"];
            let note = |(kind, owner)| note(owner, kind, &[7; 20], align);
            (1..).zip(owners).map(note).collect::<Vec<_>>().concat()
        };
        for p_align in [0, 1, 2, 3, 4, 8, 16, 32, 64, 4096, 1 << 40, u64::MAX] {
            assert_eq!(kinds(&of(4), p_align), [1, 2, 3, 4], "{p_align}");
        }
        for p_align in [8, 16, 32, 4096] {
            let declared = usize::try_from(p_align).unwrap();
            assert_eq!(kinds(&of(declared), p_align), [1, 2, 3, 4], "{p_align}");
        }
    }

    #[test]
    fn notes_of_merged_sections_are_found_behind_their_padding() {
        let property = note(b"GNU\0", 5, &[1; 16], 8);
        let build_id = note(b"GNU\0", 3, &[1; 20], 4);
        let xen = note(b"Xen\0", 18, &[0, 0, 16, 0], 4);
        for p_align in [4, 8, 16, 64] {
            let packed = [&property[..], &build_id, &xen, &xen].concat();
            assert_eq!(kinds(&packed, p_align), [5, 3, 18, 18], "{p_align}");
            let mut padded = Vec::new();
            for note in [&property, &build_id, &xen] {
                padded.extend_from_slice(note);
                padded.resize(padded.len().next_multiple_of(64), 0);
            }
            assert_eq!(kinds(&padded, p_align), [5, 3, 18], "{p_align}");
        }
    }

    #[test]
    fn damaged_note_ends_the_list() {
        let notes = [note(b"GNU\0", 3, &[1; 20], 4), note(b"Xen\0", 18, &[0; 8], 4)].concat();
        for p_align in [4, 8, 16] {
            assert_eq!(kinds(&notes[..notes.len() - 1], p_align), [3], "{p_align}");
            assert_eq!(kinds(&notes[..30], p_align), [0; 0], "{p_align}");
        }
        assert_eq!(kinds(&[0xff; 64], 4), [0; 0]);
        assert_eq!(kinds(&[0; 64], 4), [0; 0]);
        assert_eq!(kinds(&[0, 0, 1], 8), [0; 0]);
    }
}
