//! Layout: the segments of an image in guest memory, and the entries among them.

use std::mem::{align_of, size_of};
use std::ops::Range;

use linux_loader::bootparam::setup_header;
use protocol::payload::machine::HIGH_RAM_START;
use protocol::payload::note::{ABI_VERSION, Note};
use protocol::payload::report::Report;

use crate::boot::Entry;
use crate::boot::low_memory::{COMMAND_LINE_MAX, RESERVED};
use crate::memory::{PAGE, Ram};

/// Placement of an image in guest memory.
#[derive(Debug)]
pub(super) struct Layout {
    /// Segments, in the order of the image.
    pub(super) segments: Vec<Segment>,
    /// The note of our own payload.
    pub(super) note: Option<Note>,
    /// Entry of the boot vCPU when the guest starts the others itself.
    pub(super) boot_entry: Entry,
    /// Setup header of a bzImage.
    pub(super) setup: Option<setup_header>,
}

/// A part of an image that is loaded to consecutive addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// Number of its program header, for messages.
    pub(super) index: usize,
    /// Guest physical addresses. Memory behind the content is zero.
    pub(super) range: Range<u64>,
    /// Offsets of the content in the image.
    pub(super) content: Range<u64>,
}

impl Layout {
    /// Checks what does not depend on guest memory: overlaps, the ABI version, and the entries.
    pub(super) fn check_consistency(&self) -> Result<(), String> {
        let mut ascending: Vec<_> = self.segments.iter().collect();
        ascending.sort_by_key(|segment| segment.range.start);
        if let Some(two) = ascending.windows(2).find(|two| overlap(&two[0].range, &two[1].range)) {
            let (a, b) = (two[0].index, two[1].index);
            return Err(format!("segments {} and {} overlap", a.min(b), a.max(b)));
        }
        if let Some(Note { abi, .. }) = self.note
            && abi != ABI_VERSION
        {
            return Err(format!(
                "it implements version {abi} of the payload protocol, and this monitor version {ABI_VERSION} \
                 (rebuild it, or write a fresh one with `vmm-lab write-payload`)"
            ));
        }
        let boot_entry = match self.boot_entry {
            Entry::Direct(Note { entry, .. }) | Entry::Long(entry) => entry,
            Entry::Pvh(entry) => u64::from(entry),
        };
        let outside = |entry: &u64| !self.segments.iter().any(|segment| segment.range.contains(entry));
        let mut entries = self.note.map(|note| note.entry).into_iter().chain([boot_entry]);
        entries
            .find(outside)
            .map_or(Ok(()), |entry| Err(format!("the entry {entry:#x} lies outside all segments")))
    }

    /// Checks that each segment lies in RAM and apart from the boot structures.
    pub(super) fn check_fit(&self, ram: &Ram) -> Result<(), String> {
        let mib = ram.mib();
        for Segment { index, range, .. } in &self.segments {
            let Range { start, end } = range;
            let segment = || format!("segment {index} ({start:#x}..{end:#x})");
            if !ram.holds(range) {
                let cure = suggest_memory(*end, mib);
                return Err(format!("{} lies outside the {mib} MiB of guest memory{cure}", segment()));
            }
            if let Some(area) = RESERVED.iter().find(|area| overlap(range, &area.range)) {
                let (Range { start, end }, content) = (&area.range, area.content);
                return Err(format!(
                    "{} overlaps {content} among the boot structures, at {start:#x}..{end:#x} (link it elsewhere, \
                     best at 1 MiB)",
                    segment()
                ));
            }
        }
        let Some(Note { report, .. }) = self.note else { return Ok(()) };
        if ram.hva(report, size_of::<Report>(), align_of::<Report>()).is_none() {
            return Err(format!(
                "its report at {report:#x} lies outside guest memory (try a larger --memory)"
            ));
        }
        let holds_report = |segment: &Segment| {
            let Range { start, end } = segment.range;
            start <= report && report + size_of::<Report>() as u64 <= end
        };
        if !self.segments.iter().any(holds_report) {
            return Err(format!("its report at {report:#x} lies outside all segments"));
        }
        Ok(())
    }

    /// Returns the maximum length of the command line (bytes, without its terminator).
    pub(super) fn max_command_line(&self) -> usize {
        let of_kernel = self.setup.map(|setup| usize::try_from(setup.cmdline_size).unwrap_or(usize::MAX));
        of_kernel.map_or(COMMAND_LINE_MAX, |max| max.min(COMMAND_LINE_MAX))
    }

    /// Places an initrd of `length` bytes, page aligned, at the end of the first RAM range or at
    /// the limit of the kernel. Returns `None` if it does not fit there.
    pub(super) fn place_initrd(&self, ram: &Ram, length: u64) -> Option<Range<u64>> {
        let limit = self.setup.map_or(u64::MAX, |setup| u64::from(setup.initrd_addr_max) + 1);
        let end = ram.ranges().next()?.end.min(limit);
        let start = end.checked_sub(length)? & !(PAGE - 1);
        let range = start..start + length;
        let is_free = !self.segments.iter().any(|segment| overlap(&segment.range, &range));
        (start >= HIGH_RAM_START && is_free).then_some(range)
    }
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

/// Returns the hint to the memory size that reaches up to `end`, where a guest can have that much.
fn suggest_memory(end: u64, mib: u64) -> String {
    let needed = end.div_ceil(1 << 20).next_power_of_two();
    if needed > mib && needed <= 1 << 20 { format!(" (try --memory {needed})") } else { String::new() }
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
        assert_eq!(error.check_consistency(), Err("segments 0 and 2 overlap".to_owned()));
    }

    #[test]
    fn entry_outside_every_segment_is_refused() {
        let segments = [0x10_0000..0x10_1000];
        assert_eq!(
            layout(&segments, Entry::Long(0x10_1000)).check_consistency(),
            Err("the entry 0x101000 lies outside all segments".to_owned())
        );
        assert_eq!(
            layout(&segments, Entry::Pvh(0xf_ffff)).check_consistency(),
            Err("the entry 0xfffff lies outside all segments".to_owned())
        );
        assert_eq!(layout(&segments, Entry::Pvh(0x10_0fff)).check_consistency(), Ok(()));
    }

    #[test]
    fn note_of_another_version_is_refused() {
        let note = Note { abi: 99, entry: 0x10_0000, report: 0 };
        let mut layout = layout(std::slice::from_ref(&(0x10_0000..0x10_1000)), Entry::Pvh(0x10_0000));
        layout.note = Some(note);
        let refused = layout.check_consistency().unwrap_err();
        assert!(refused.starts_with("it implements version 99 of the payload protocol"), "{refused}");
        layout.note = Some(Note { abi: ABI_VERSION, entry: 1, report: 0 });
        let refused = layout.check_consistency().unwrap_err();
        assert_eq!(refused, "the entry 0x1 lies outside all segments");
    }

    #[test]
    fn segment_outside_ram_suggests_a_size_that_fits() {
        let ram = Ram::new(64).unwrap();
        let far = layout(std::slice::from_ref(&(0x400_0000..0x410_0000)), Entry::Long(0x400_0000));
        assert_eq!(
            far.check_fit(&ram).unwrap_err(),
            "segment 0 (0x4000000..0x4100000) lies outside the 64 MiB of guest memory (try --memory 128)"
        );
        let wild = layout(std::slice::from_ref(&(u64::MAX - 10..u64::MAX)), Entry::Long(u64::MAX - 10));
        assert!(!wild.check_fit(&ram).unwrap_err().contains("try"));
    }

    #[test]
    fn segment_over_any_boot_structure_is_refused_and_beside_them_all_is_accepted() {
        let ram = Ram::new(64).unwrap();
        let fits = |range: Range<u64>| {
            layout(std::slice::from_ref(&range), Entry::Long(range.start)).check_fit(&ram)
        };
        assert_eq!(
            fits(0x7c00..0x7e00).unwrap_err(),
            "segment 0 (0x7c00..0x7e00) overlaps the command line among the boot structures, at \
             0x3000..0x8000 (link it elsewhere, best at 1 MiB)"
        );
        for (start, content) in [
            (0x1000, "descriptor table"),
            (0x9_fc00, "MP floating pointer"),
            (0xe_0000, "ACPI tables"),
            (0xf_0000, "MP table"),
        ] {
            let refused = fits(start..start + 1).unwrap_err();
            assert!(refused.contains(content), "{refused}");
        }
        let mut free = 0;
        for area in &RESERVED {
            assert!(fits(area.range.start..area.range.start + 1).is_err(), "{area:?}");
            assert!(fits(area.range.end - 1..area.range.end + 1).is_err(), "{area:?}");
            assert_eq!(fits(free..area.range.start.max(free + 1)).is_ok(), free < area.range.start);
            free = area.range.end;
        }
        assert_eq!(fits(free..free + 0x1000), Ok(()));
    }

    #[test]
    fn report_outside_all_segments_is_refused() {
        let size = size_of::<Report>() as u64;
        let ram = Ram::new(64).unwrap();
        let segments = [0x10_0000..0x10_0000 + size];
        let mut layout = layout(&segments, Entry::Pvh(0x10_0000));
        for (report, is_held) in [(0x10_0000, true), (0x10_1000, false), (0x1000, false), (0x400_0000, false)]
        {
            layout.note = Some(Note { abi: ABI_VERSION, entry: 0x10_0000, report });
            assert_eq!(layout.check_fit(&ram).is_ok(), is_held, "{report:#x}");
        }
    }

    #[test]
    fn initrd_lies_at_the_end_of_ram_and_never_on_a_segment() {
        let ram = Ram::new(2).unwrap();
        let layout = layout(std::slice::from_ref(&(0x10_0000..0x11_0000)), Entry::Long(0x10_0000));
        assert_eq!(layout.place_initrd(&ram, 5000), Some(0x1f_e000..0x1f_f388));
        assert_eq!(layout.place_initrd(&ram, 0xf_0001), None);
        assert_eq!(layout.place_initrd(&ram, 0x30_0000), None);
    }

    #[test]
    fn setup_header_limits_the_initrd_address_and_the_command_line() {
        let ram = Ram::new(8).unwrap();
        let mut layout = layout(std::slice::from_ref(&(0x10_0000..0x11_0000)), Entry::Long(0x10_0000));
        assert_eq!(layout.max_command_line(), COMMAND_LINE_MAX);
        let setup = setup_header { initrd_addr_max: 0x3f_ffff, cmdline_size: 255, ..setup_header::default() };
        layout.setup = Some(setup);
        assert_eq!(layout.place_initrd(&ram, 0x1000), Some(0x3f_f000..0x40_0000));
        assert_eq!(layout.max_command_line(), 255);
    }
}
