//! Layout: what of an image goes where in guest memory, and how vCPUs begin there.

use std::mem::{align_of, size_of};
use std::ops::Range;

use linux_loader::loader::bootparam::setup_header;
use protocol::machine::HIGH_RAM_START;
use protocol::payload::{ABI_VERSION, Note};
use protocol::report::Report;

use super::error::PayloadError;
use crate::boot::{self, COMMAND_LINE_MAX, Entry};
use crate::memory::{PAGE, Ram};

/// What goes where.
#[derive(Debug)]
pub struct Layout {
    /// The parts, at their physical addresses.
    pub segments: Vec<Segment>,
    /// Our note, if there is one.
    pub note: Option<Note>,
    /// How the boot vCPU begins when it is to start the others itself.
    pub boot_entry: Entry,
    /// The setup header of a bzImage.
    pub setup: Option<setup_header>,
}

/// A part of an image, to be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its number in the program headers, for messages.
    pub index: usize,
    /// Where it goes: guest physical addresses, longer than `content` where the rest is zero.
    pub range: Range<u64>,
    /// What goes there: offsets in the image.
    pub content: Range<u64>,
}

impl Layout {
    /// Whether it makes sense, wherever it is to go.
    pub(super) fn check_shape(&self) -> Result<(), PayloadError> {
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

    /// Whether all of it is RAM that is free for it.
    pub(super) fn check_fit(&self, ram: &Ram) -> Result<(), PayloadError> {
        for Segment { index, range, .. } in &self.segments {
            if !ram.holds(range) {
                return Err(PayloadError::Outside { index: *index, range: range.clone(), mib: ram.mib() });
            }
            if overlap(range, &boot::AREA) {
                return Err(PayloadError::BootArea { index: *index, range: range.clone() });
            }
        }
        match self.note {
            Some(note) if ram.hva(note.report, size_of::<Report>(), align_of::<Report>()).is_none() => {
                Err(PayloadError::ReportOutside(note.report))
            }
            _ => Ok(()),
        }
    }

    /// The longest command line that the payload takes (bytes).
    pub(super) fn longest_command_line(&self) -> usize {
        let own = self.setup.map(|setup| usize::try_from(setup.cmdline_size).unwrap_or(usize::MAX));
        own.map_or(COMMAND_LINE_MAX, |own| own.min(COMMAND_LINE_MAX))
    }

    /// Where an initrd of this length goes: as high as it can in the first range of RAM, page aligned. `None` if it does not
    /// fit there.
    pub(super) fn place_initrd(&self, ram: &Ram, length: u64) -> Option<Range<u64>> {
        let most = self.setup.map_or(u64::MAX, |setup| u64::from(setup.initrd_addr_max) + 1);
        let end = ram.ranges().next()?.end.min(most);
        let start = end.checked_sub(length)? & !(PAGE - 1);
        let range = start..start + length;
        let is_free = !self.segments.iter().any(|segment| overlap(&segment.range, &range));
        (start >= HIGH_RAM_START && is_free).then_some(range)
    }
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(segments: &[Range<u64>], boot_entry: Entry) -> Layout {
        let segments = segments.iter().enumerate();
        let segments = segments.map(|(index, range)| Segment { index, range: range.clone(), content: 0..0 });
        Layout { segments: segments.collect(), note: None, boot_entry, setup: None }
    }

    #[test]
    fn overlapping_segments_are_named() {
        let error = layout(
            &[0x10_0000..0x10_1000, 0x20_0000..0x20_1000, 0x10_0fff..0x10_2000],
            Entry::Long(0x10_0000),
        );
        assert_eq!(error.check_shape(), Err(PayloadError::Overlap { first: 0, second: 2 }));
    }

    #[test]
    fn entry_outside_every_segment_is_refused() {
        let segments = [0x10_0000..0x10_1000];
        assert_eq!(
            layout(&segments, Entry::Long(0x10_1000)).check_shape(),
            Err(PayloadError::EntryOutside(0x10_1000))
        );
        assert_eq!(
            layout(&segments, Entry::Pvh(0xf_ffff)).check_shape(),
            Err(PayloadError::EntryOutside(0xf_ffff))
        );
        assert_eq!(layout(&segments, Entry::Pvh(0x10_0fff)).check_shape(), Ok(()));
    }

    #[test]
    fn note_of_another_version_is_refused() {
        let note = Note { abi: 99, entry: 0x10_0000, report: 0 };
        let mut layout = layout(std::slice::from_ref(&(0x10_0000..0x10_1000)), Entry::Pvh(0x10_0000));
        layout.note = Some(note);
        assert_eq!(layout.check_shape(), Err(PayloadError::AbiVersion { found: 99 }));
        layout.note = Some(Note { abi: ABI_VERSION, entry: 1, report: 0 });
        assert_eq!(layout.check_shape(), Err(PayloadError::EntryOutside(1)));
    }

    #[test]
    fn segment_outside_ram_suggests_a_size_that_fits() {
        let ram = Ram::new(64).unwrap();
        let far = layout(std::slice::from_ref(&(0x400_0000..0x410_0000)), Entry::Long(0x400_0000));
        assert_eq!(
            far.check_fit(&ram).unwrap_err().to_string(),
            "segment 0 (0x4000000..0x4100000) lies outside the 64 MiB of guest memory (try --memory 128)"
        );
        let wild = layout(std::slice::from_ref(&(u64::MAX - 10..u64::MAX)), Entry::Long(u64::MAX - 10));
        assert!(!wild.check_fit(&ram).unwrap_err().to_string().contains("try"));
    }

    #[test]
    fn segment_over_the_boot_structures_is_refused() {
        let ram = Ram::new(64).unwrap();
        let low = layout(std::slice::from_ref(&(0x7c00..0x7e00)), Entry::Long(0x7c00));
        assert!(matches!(low.check_fit(&ram), Err(PayloadError::BootArea { index: 0, .. })));
    }

    #[test]
    fn initrd_lies_at_the_top_and_never_on_a_segment() {
        let ram = Ram::new(2).unwrap();
        let layout = layout(std::slice::from_ref(&(0x10_0000..0x11_0000)), Entry::Long(0x10_0000));
        assert_eq!(layout.place_initrd(&ram, 5000), Some(0x1f_e000..0x1f_f388));
        assert_eq!(layout.place_initrd(&ram, 0xf_0001), None);
        assert_eq!(layout.place_initrd(&ram, 0x30_0000), None);
    }

    #[test]
    fn kernel_with_a_header_says_how_high_its_initrd_may_lie_and_how_long_its_command_line_may_be() {
        let ram = Ram::new(8).unwrap();
        let mut layout = layout(std::slice::from_ref(&(0x10_0000..0x11_0000)), Entry::Long(0x10_0000));
        assert_eq!(layout.longest_command_line(), COMMAND_LINE_MAX);
        let setup = setup_header { initrd_addr_max: 0x3f_ffff, cmdline_size: 255, ..setup_header::default() };
        layout.setup = Some(setup);
        assert_eq!(layout.place_initrd(&ram, 0x1000), Some(0x3f_f000..0x40_0000));
        assert_eq!(layout.longest_command_line(), 255);
    }
}
