//! Verdicts, and the nap that gives the host a reason to write a record.

use core::panic::Location;

use guest_payload::steal_time::Record;
use protocol::payload::conformance::Assertion;

use crate::metal::entry::REPORT;
use crate::metal::lapic;

/// Length of a nap, in ticks of the local APIC's timer: 0.2 ms.
pub(super) const NAP: u32 = 200_000;

/// Sleeps and wakes a few times, so that the host has a reason to write the record of this vCPU.
pub(super) fn nap() {
    for _ in 0..4 {
        lapic::nap(NAP);
    }
}

/// Naps, and returns whether the host wrote `record` meanwhile.
pub(super) fn is_written_in_a_nap(record: &Record) -> bool {
    let before = record.version();
    nap();
    record.version() != before
}

/// Records that `assertion` was observed `times` times, and held if `holds`. If not, it is broken,
/// at the line of the caller.
#[track_caller]
pub(super) fn judge(assertion: Assertion, times: u64, holds: bool) {
    if holds {
        REPORT.header.findings.hold(assertion, times);
    } else {
        REPORT.header.findings.refute(assertion, Location::caller().line());
    }
}

/// Records one observation of `assertion`.
#[track_caller]
pub(super) fn expect(assertion: Assertion, holds: bool) {
    judge(assertion, 1, holds);
}
