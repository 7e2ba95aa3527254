//! The payload's report in guest memory, which the host reads while the guest writes.

#![expect(unsafe_code, reason = "reads the report in place")]

use std::mem::{align_of, size_of};
use std::ops::Deref;
use std::ptr::NonNull;

use protocol::payload::report::Report;

use vmm::memory::Ram;

/// A report in guest memory. All its fields are atomics.
#[derive(Clone, Debug)]
pub struct ReportView {
    report: NonNull<Report>,
    _ram: Ram,
}

// SAFETY: a `Report` consists of atomics, which any thread may access at any time, and `_ram` keeps
// the memory mapped.
unsafe impl Send for ReportView {}

// SAFETY: as for `Send`: a shared reference gives access to atomics only.
unsafe impl Sync for ReportView {}

impl ReportView {
    /// The report at `gpa`; `None` if it is misaligned or not entirely in `ram`.
    pub fn at(ram: &Ram, gpa: u64) -> Option<Self> {
        let report = ram.hva(gpa, size_of::<Report>(), align_of::<Report>())?;
        Some(Self { report: report.cast(), _ram: ram.clone() })
    }
}

impl Deref for ReportView {
    type Target = Report;

    fn deref(&self) -> &Report {
        // SAFETY: `ReportView::at` checked that the report is aligned and entirely in RAM, which
        // `_ram` keeps mapped. Any bytes are valid atomics, and the guest writes them as atomics.
        unsafe { self.report.as_ref() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_outside_ram_or_misaligned_is_none() {
        let ram = Ram::new(8).unwrap();
        for gpa in [0x10_0800, 0x7f_f000, u64::MAX - 4095] {
            assert!(ReportView::at(&ram, gpa).is_none(), "{gpa:#x}");
        }
        assert!(ReportView::at(&ram, 0x10_0000).is_some());
    }
}
