//! MSRs that KVM keeps for a vCPU, read and written one at a time.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

/// `IA32_TIME_STAMP_COUNTER`.
pub const TSC: u32 = 0x10;

/// Returns KVM's value of MSR `index`, or `None` if KVM refuses (`KVM_GET_MSRS`).
pub fn read(fd: &VcpuFd, index: u32) -> Option<u64> {
    let mut msrs = Msrs::from_entries(&[kvm_msr_entry { index, ..kvm_msr_entry::default() }]).ok()?;
    match fd.get_msrs(&mut msrs) {
        Ok(1) => msrs.as_slice().first().map(|entry| entry.data),
        _ => None,
    }
}

/// Sets KVM's value of MSR `index` (`KVM_SET_MSRS`). Returns whether KVM accepted it.
pub fn write(fd: &VcpuFd, index: u32, data: u64) -> bool {
    let entry = kvm_msr_entry { index, data, ..kvm_msr_entry::default() };
    Msrs::from_entries(&[entry]).is_ok_and(|msrs| matches!(fd.set_msrs(&msrs), Ok(1)))
}
