//! Absent: the feature is off, and nothing of it is there.

use protocol::conformance::Assertion;
use protocol::steal_time::MSR_STEAL_TIME;

use super::expect;
use crate::metal::calls::{self, Faulted};

pub(super) fn run() {
    expect(Assertion::FeatureOffered, !crate::has_steal_time());
    expect(Assertion::AbsentFaults, calls::read_msr(MSR_STEAL_TIME) == Err(Faulted));
    for value in [0, 0x20_0000, 0x20_0001] {
        expect(Assertion::AbsentFaults, calls::write_msr(MSR_STEAL_TIME, value) == Err(Faulted));
    }
}
