//! Check: every form of the check, for every vCPU and every value of `preempted`, on unregistered
//! records.

use guest_payload::lab::check_forms::FORMS;
use guest_payload::lab::differential::compare;
use protocol::MAX_VCPUS;
use protocol::payload::conformance::Assertion;

use super::verdict::judge;
use crate::metal::ports::print_line;

#[expect(unsafe_code, reason = "calls the forms as no Rust code does")]
pub(super) fn run() {
    for form in FORMS {
        // SAFETY: the form is a check, and no vCPU has registered a record.
        let compared = unsafe { compare(form, MAX_VCPUS) };
        match compared {
            Ok(trials) => {
                judge(Assertion::CheckKeepsRegisters, trials, true);
                judge(Assertion::WholeByteCounts, trials, true);
            }
            Err(difference) => {
                print_line!("check {}: {difference}", form.name);
                judge(Assertion::CheckKeepsRegisters, 0, false);
            }
        }
    }
}
