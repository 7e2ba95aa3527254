//! CPUID: what each vCPU says of itself, and what the hypervisor offers.
//!
//! KVM's supported leaves, with these changes:
//!
//! - leaf 1: the APIC id (EBX 31:24), the hypervisor bit, and the TSC deadline timer (ECX 24), which KVM emulates
//!   but does not report;
//! - leaves 0xB and 0x1F (EDX) and 0x8000001E (EAX): the APIC id;
//! - leaf 0x40000001 EAX: steal time (bit 5) exactly when a publisher is on; PV TLB flush (bit 9) and PV sched yield
//!   (bit 13) never. Under bit 9 a guest writes into the byte of a vCPU that is off its CPU and relies on the host to
//!   flush before that vCPU runs again: then the byte carries correctness, not a hint, and only KVM can own it.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::Kvm;
use protocol::VcpuId;
use protocol::steal_time::{
    CPUID_FEATURES, FEATURE_PV_SCHED_YIELD, FEATURE_PV_TLB_FLUSH, FEATURE_STEAL_TIME,
};

use crate::publisher::MsrOwner;

/// Leaf 1 ECX: TSC deadline timer.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 ECX: runs under a hypervisor.
const HYPERVISOR: u32 = 1 << 31;

/// What KVM supports, read once for all vCPUs.
#[derive(Clone, Debug)]
pub struct Supported(CpuId);

impl Supported {
    /// Asks KVM.
    ///
    /// # Errors
    /// KVM's reason.
    pub fn read(kvm: &Kvm) -> Result<Self, kvm_ioctls::Error> {
        kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map(Self)
    }

    /// Whether KVM has steal time of its own.
    pub fn has_steal_time(&self) -> bool {
        self.0
            .as_slice()
            .iter()
            .any(|leaf| leaf.function == CPUID_FEATURES && leaf.eax & FEATURE_STEAL_TIME != 0)
    }

    /// The leaves of `vcpu` in a VM whose steal-time MSR is `owner`'s.
    pub fn of_vcpu(&self, vcpu: VcpuId, owner: MsrOwner) -> CpuId {
        let mut cpuid = self.0.clone();
        let apic_id = u32::from(vcpu.apic_id());
        for leaf in cpuid.as_mut_slice() {
            match leaf.function {
                1 => {
                    leaf.ebx = leaf.ebx & 0x00ff_ffff | apic_id << 24;
                    leaf.ecx |= TSC_DEADLINE | HYPERVISOR;
                }
                0xb | 0x1f => leaf.edx = apic_id,
                0x8000_001e => leaf.eax = apic_id,
                CPUID_FEATURES => {
                    leaf.eax &= !(FEATURE_STEAL_TIME | FEATURE_PV_TLB_FLUSH | FEATURE_PV_SCHED_YIELD);
                    if owner != MsrOwner::Nobody {
                        leaf.eax |= FEATURE_STEAL_TIME;
                    }
                }
                _ => {}
            }
        }
        cpuid
    }
}

#[cfg(test)]
mod tests {
    use kvm_bindings::kvm_cpuid_entry2;

    use super::*;

    fn leaf(function: u32, fill: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            eax: fill,
            ebx: fill,
            ecx: fill,
            edx: fill,
            ..kvm_cpuid_entry2::default()
        }
    }

    fn supported(fill: u32) -> Supported {
        let leaves = [leaf(1, fill), leaf(0xb, fill), leaf(0x8000_001e, fill), leaf(CPUID_FEATURES, fill)];
        Supported(CpuId::from_entries(&leaves).unwrap())
    }

    #[test]
    fn each_vcpu_shows_its_own_apic_id_everywhere() {
        let cpuid = supported(u32::MAX).of_vcpu(VcpuId::new(254).unwrap(), MsrOwner::Monitor);
        let leaves = cpuid.as_slice();
        assert_eq!(leaves[0].ebx, 0xfeff_ffff);
        assert_eq!(leaves[1].edx, 254);
        assert_eq!(leaves[2].eax, 254);
    }

    #[test]
    fn steal_time_is_offered_exactly_when_the_msr_has_an_owner() {
        for fill in [0, u32::MAX] {
            for (owner, offered) in
                [(MsrOwner::Monitor, true), (MsrOwner::Kernel, true), (MsrOwner::Nobody, false)]
            {
                let cpuid = supported(fill).of_vcpu(VcpuId::BOOT, owner);
                let features = cpuid.as_slice()[3].eax;
                assert_eq!(features & FEATURE_STEAL_TIME != 0, offered);
                assert_eq!(features & (FEATURE_PV_TLB_FLUSH | FEATURE_PV_SCHED_YIELD), 0);
            }
        }
    }

    #[test]
    fn deadline_timer_and_hypervisor_are_shown_though_kvm_reports_neither() {
        let cpuid = supported(0).of_vcpu(VcpuId::BOOT, MsrOwner::Nobody);
        assert_eq!(cpuid.as_slice()[0].ecx, TSC_DEADLINE | HYPERVISOR);
    }
}
