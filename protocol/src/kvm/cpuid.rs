//! CPUID: how a guest learns that the host publishes steal time.
//!
//! Source: `Documentation/virt/kvm/x86/cpuid.rst`.

/// The leaf with the hypervisor's signature. EBX, ECX, EDX hold `KVMKVMKVM\0\0\0`; EAX holds the
/// last hypervisor leaf.
pub const CPUID_SIGNATURE: u32 = 0x4000_0000;

/// The leaf whose EAX holds KVM's paravirtual feature bits.
pub const CPUID_FEATURES: u32 = 0x4000_0001;

/// `KVM_FEATURE_STEAL_TIME`, bit 5: the guest may write [`MSR_STEAL_TIME`](super::MSR_STEAL_TIME).
pub const FEATURE_STEAL_TIME: u32 = 1 << 5;

/// `KVM_FEATURE_PV_TLB_FLUSH`, bit 9: the guest may set bit 1 of `preempted`, and the host then
/// flushes the vCPU's TLB before it runs again.
pub const FEATURE_PV_TLB_FLUSH: u32 = 1 << 9;

/// `KVM_FEATURE_PV_SCHED_YIELD`, bit 13: the guest may yield to a preempted vCPU by hypercall.
pub const FEATURE_PV_SCHED_YIELD: u32 = 1 << 13;
