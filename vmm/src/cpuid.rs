//! CPUID leaves of the vCPUs.
//!
//! They are the leaves that KVM supports, with these changes:
//!
//! - leaf 1: the APIC id (EBX 31:24), the hypervisor bit (ECX 31), and the TSC deadline timer (ECX
//!   24), which KVM emulates but does not report;
//! - leaves 0xB and 0x1F (EDX) and 0x8000001E (EAX): the APIC id.
//!
//! [`steal_time::cpuid`] adds leaf 0x40000001.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::Kvm;
use protocol::VcpuId;
use steal_time::cpuid;

use crate::error::VmmError;

/// Leaf 1 ECX: TSC deadline timer.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 ECX: a hypervisor is present.
const HYPERVISOR: u32 = 1 << 31;

/// The leaves that KVM supports, read once for all vCPUs.
#[derive(Clone, Debug)]
pub struct Supported(CpuId);

impl Supported {
    /// Reads the leaves from KVM (`KVM_GET_SUPPORTED_CPUID`).
    ///
    /// # Errors
    /// [`VmmError::Host`] if KVM refuses.
    pub fn read(kvm: &Kvm) -> Result<Self, VmmError> {
        let leaves = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
        leaves.map(Self).map_err(VmmError::cannot("read the CPUID leaves that KVM supports"))
    }

    /// Returns whether KVM implements steal time itself.
    pub fn has_steal_time(&self) -> bool {
        cpuid::has_steal_time(&self.0)
    }

    /// Returns the leaves of `vcpu`, without steal time.
    pub fn of_vcpu(&self, vcpu: VcpuId) -> CpuId {
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
        let leaves = [leaf(1, fill), leaf(0xb, fill), leaf(0x8000_001e, fill)];
        Supported(CpuId::from_entries(&leaves).unwrap())
    }

    #[test]
    fn each_vcpu_shows_its_own_apic_id_everywhere() {
        let cpuid = supported(u32::MAX).of_vcpu(VcpuId::new(254).unwrap());
        let leaves = cpuid.as_slice();
        assert_eq!(leaves[0].ebx, 0xfeff_ffff);
        assert_eq!(leaves[1].edx, 254);
        assert_eq!(leaves[2].eax, 254);
    }

    #[test]
    fn deadline_timer_and_hypervisor_are_shown_though_kvm_reports_neither() {
        let cpuid = supported(0).of_vcpu(VcpuId::BOOT);
        assert_eq!(cpuid.as_slice()[0].ecx, TSC_DEADLINE | HYPERVISOR);
    }
}
