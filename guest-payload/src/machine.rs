//! What a vCPU knows about its machine once it has come up.

use core::ptr;

use guest_payload::steal_time::record_of;
use protocol::kvm::{CPUID_FEATURES, CPUID_SIGNATURE, FEATURE_STEAL_TIME, MSR_STEAL_TIME, Registration};
use protocol::payload::params::Workload;

use crate::metal::calls;
use crate::metal::vcpu::Vcpu;

/// The machine, as one of its vCPUs sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Machine {
    /// The vCPU that this is a copy of, with the rate of its clock.
    pub(crate) vcpu: Vcpu,
    /// Number of vCPUs.
    pub(crate) vcpus: usize,
    /// First guest physical address above the last range of the memory map.
    pub(crate) end_of_memory: u64,
    /// End (GPA) of the last range of RAM below 4 GiB.
    pub(crate) end_of_ram: u64,
    /// Guest physical address of the PVH start info.
    pub(crate) start_info: u64,
}

/// Returns whether CPUID shows KVM's signature and the steal-time feature.
pub(crate) fn has_steal_time() -> bool {
    let signature = calls::cpuid(CPUID_SIGNATURE);
    let words = [signature.ebx, signature.ecx, signature.edx].map(u32::to_le_bytes);
    words.as_flattened() == b"KVMKVMKVM\0\0\0"
        && signature.eax >= CPUID_FEATURES
        && calls::cpuid(CPUID_FEATURES).eax & FEATURE_STEAL_TIME != 0
}

/// Registers the record of this vCPU, unless `workload` turns that off or the host lacks the
/// feature.
pub(crate) fn register_record(machine: Machine, workload: Workload) {
    if workload.steal && has_steal_time() {
        let gpa = ptr::from_ref(record_of(machine.vcpu.id)).addr() as u64;
        let registered = calls::write_msr(MSR_STEAL_TIME, Registration::At { gpa }.to_msr());
        assert!(registered.is_ok(), "the steal-time MSR takes a record's address");
    }
}
