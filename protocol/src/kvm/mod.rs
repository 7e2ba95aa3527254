//! KVM's ABI for steal time: the record, its MSR and its CPUID bits.
//!
//! A vCPU is a thread of the host. When the host's scheduler runs another thread in its place, the
//! guest cannot tell: its clock jumps, and a lock that the vCPU holds stays taken. Steal time shows
//! the guest how long its vCPUs waited for a CPU, and which of them wait at this moment.
//!
//! The life of a record:
//!
//! 1. **Offer.** CPUID leaf [`CPUID_FEATURES`] shows [`FEATURE_STEAL_TIME`].
//! 2. **Register.** Each vCPU zeroes a [`StealTime`] and writes its guest physical address, with
//!    bit 0 set, to [`MSR_STEAL_TIME`]. [`Registration`] encodes and decodes the value.
//! 3. **Preempt.** The host stores [`PREEMPTED`] into the record when it schedules the vCPU out
//!    although it wants to run. A vCPU that halts is not preempted: its byte stays 0.
//! 4. **Schedule in.** Before the vCPU runs again, the host clears `preempted` and adds the wait to
//!    `steal`.
//! 5. **Stop.** A value with bit 0 clear ends all writes. So does INIT.
//!
//! Sources in the Linux tree:
//!
//! | what | where |
//! |---|---|
//! | the contract | `Documentation/virt/kvm/x86/msr.rst`, `MSR_KVM_STEAL_TIME` |
//! | layout and numbers | `arch/x86/include/uapi/asm/kvm_para.h` |
//! | the writer | `arch/x86/kvm/x86.c`: `record_steal_time`, `kvm_steal_time_set_preempted` |
//! | the reader | `arch/x86/kernel/kvm.c`: `kvm_steal_clock`, `__kvm_vcpu_is_preempted` |

mod cpuid;
mod msr;
mod record;

pub use cpuid::{
    CPUID_FEATURES, CPUID_SIGNATURE, FEATURE_PV_SCHED_YIELD, FEATURE_PV_TLB_FLUSH, FEATURE_STEAL_TIME,
};
pub use msr::{MSR_ENABLE, MSR_RESERVED, MSR_STEAL_TIME, Registration, ReservedBits};
pub use record::{PREEMPTED, StealTime};
