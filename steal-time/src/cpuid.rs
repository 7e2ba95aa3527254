//! CPUID: announces steal time to the guest.
//!
//! Leaf 0x40000001 EAX has steal time (bit 5) exactly when the MSR exists. PV TLB flush (bit 9) and
//! PV sched yield (bit 13) are never set. Under bit 9 a guest writes into `preempted` of a
//! preempted vCPU, and relies on the host to flush its TLB before that vCPU runs again. `preempted`
//! is then no longer a hint, and only KVM can own it.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::Kvm;
use protocol::kvm::{CPUID_FEATURES, FEATURE_PV_SCHED_YIELD, FEATURE_PV_TLB_FLUSH, FEATURE_STEAL_TIME};

use crate::error::StealTimeError;

/// Returns whether `cpuid`, KVM's supported leaves, has steal time.
pub fn has_steal_time(cpuid: &CpuId) -> bool {
    let mut leaves = cpuid.as_slice().iter();
    leaves.any(|leaf| leaf.function == CPUID_FEATURES && leaf.eax & FEATURE_STEAL_TIME != 0)
}

/// Reads KVM's supported leaves, and returns whether they have steal time.
///
/// # Errors
/// [`StealTimeError::SupportedCpuid`] if `/dev/kvm` cannot be opened or refuses.
pub(crate) fn kvm_has_steal_time() -> Result<bool, StealTimeError> {
    let supported = Kvm::new().and_then(|kvm| kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES));
    supported.map(|cpuid| has_steal_time(&cpuid)).map_err(StealTimeError::SupportedCpuid)
}

/// Sets the steal-time bit of `cpuid` if `is_offered`, and clears the bits that only KVM can back.
pub fn set_steal_time(cpuid: &mut CpuId, is_offered: bool) {
    for leaf in cpuid.as_mut_slice().iter_mut().filter(|leaf| leaf.function == CPUID_FEATURES) {
        leaf.eax &= !(FEATURE_STEAL_TIME | FEATURE_PV_TLB_FLUSH | FEATURE_PV_SCHED_YIELD);
        if is_offered {
            leaf.eax |= FEATURE_STEAL_TIME;
        }
    }
}

#[cfg(test)]
mod tests {
    use kvm_bindings::kvm_cpuid_entry2;

    use super::*;

    /// Linux 6cd88243c7e0 (CVE-2022-39189), b043138246a4 (CVE-2019-3016): PV TLB flush makes the
    /// byte carry correctness. It is never offered.
    #[test]
    fn steal_time_is_offered_exactly_when_requested() {
        for (fill, is_offered) in [(0, false), (0, true), (u32::MAX, false), (u32::MAX, true)] {
            let leaf =
                kvm_cpuid_entry2 { function: CPUID_FEATURES, eax: fill, ..kvm_cpuid_entry2::default() };
            let mut cpuid = CpuId::from_entries(&[leaf]).unwrap();
            set_steal_time(&mut cpuid, is_offered);
            let features = cpuid.as_slice()[0].eax;
            assert_eq!(features & FEATURE_STEAL_TIME != 0, is_offered);
            assert_eq!(features & (FEATURE_PV_TLB_FLUSH | FEATURE_PV_SCHED_YIELD), 0);
            assert_eq!(has_steal_time(&cpuid), is_offered);
        }
    }
}
