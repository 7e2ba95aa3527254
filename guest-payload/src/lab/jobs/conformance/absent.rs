//! Absent: the feature is off, and the guest finds no trace of it.

use protocol::kvm::MSR_STEAL_TIME;
use protocol::payload::conformance::Assertion;

use super::verdict::expect;
use crate::machine;
use crate::metal::calls::{self, Faulted};

pub(super) fn run() {
    expect(Assertion::FeatureOffered, !machine::has_steal_time());
    expect(Assertion::AbsentFaults, calls::read_msr(MSR_STEAL_TIME) == Err(Faulted));
    for value in [0, 0x20_0000, 0x20_0001] {
        expect(Assertion::AbsentFaults, calls::write_msr(MSR_STEAL_TIME, value) == Err(Faulted));
    }
}
