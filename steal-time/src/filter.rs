//! The MSR filter. KVM implements the steal-time MSR itself, so a filter denies it this one index:
//! each access exits to userspace.
//!
//! Source: `Documentation/virt/kvm/api.rst`, `KVM_CAP_X86_USER_SPACE_MSR` and
//! `KVM_X86_SET_MSR_FILTER`.

use kvm_ioctls::{Cap, MsrExitReason, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd};
use protocol::kvm::MSR_STEAL_TIME;

use crate::error::StealTimeError;

/// Makes KVM exit to userspace on each access to the steal-time MSR. Called before the first vCPU
/// runs.
///
/// # Errors
/// [`StealTimeError`] if KVM lacks the capability (Linux 5.10) or refuses the filter. Nothing is
/// filtered then.
pub fn filter_msr(vm: &VmFd) -> Result<(), StealTimeError> {
    if !vm.check_extension(Cap::X86UserSpaceMsr) {
        return Err(StealTimeError::MsrFilterMissing("KVM_CAP_X86_USER_SPACE_MSR"));
    }
    if !vm.check_extension(Cap::X86MsrFilter) {
        return Err(StealTimeError::MsrFilterMissing("KVM_CAP_X86_MSR_FILTER"));
    }
    let mut exits = kvm_bindings::kvm_enable_cap {
        cap: kvm_bindings::KVM_CAP_X86_USER_SPACE_MSR,
        ..kvm_bindings::kvm_enable_cap::default()
    };
    exits.args[0] = u64::from(MsrExitReason::Filter.bits());
    vm.enable_cap(&exits).map_err(StealTimeError::MsrFilter)?;
    // A bit of 0 denies; every other index is allowed
    let denied = MsrFilterRange {
        flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
        base: MSR_STEAL_TIME,
        msr_count: 1,
        bitmap: &[0],
    };
    vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &[denied]).map_err(StealTimeError::MsrFilter)
}
