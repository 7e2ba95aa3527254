//! The error of every call in this library.

use std::error::Error;
use std::io;

use protocol::VcpuId;

use crate::bpf::BpfError;
use crate::publisher::kind::{PublisherChoice, PublisherKind};
use host::cpus::CpuError;
use host::perf::PerfError;

/// Steal time cannot be published, saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum StealTimeError {
    /// The BPF program cannot be loaded, or a thread not attached to it.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// perf cannot record the switches of a thread, or the observer thread cannot start.
    #[error("Cannot publish by perf")]
    Perf(#[from] PerfError),
    /// The chosen publisher needs a kick signal, and the monitor has none.
    #[error("Publisher {0} needs a kick signal, and this monitor's HostVm::kick_signal returns none")]
    NoKickSignal(PublisherKind),
    /// A publisher that is not part of this library cannot be created.
    #[error(transparent)]
    Wrapper(Box<dyn Error + Send + Sync>),
    /// The host refuses to map the page that replaces a guest page.
    #[error("Cannot map a record page over guest page {page_gpa:#x}")]
    Overlay {
        /// The guest page (GPA).
        page_gpa: u64,
        /// The error of mmap(2).
        source: io::Error,
    },
    /// The run delay of a vCPU thread cannot be read.
    #[error("Cannot read the vCPU thread's run delay from /proc/thread-self/schedstat (is /proc mounted?)")]
    RunDelay(#[source] io::Error),
    /// A copy of a vCPU's descriptor, by which INIT is judged, cannot be made.
    #[error("Cannot copy a vCPU's file descriptor to detect INIT (is the limit on open files reached?)")]
    Witness(#[source] io::Error),
    /// The CPUs that the vCPU threads may use cannot be read.
    #[error(transparent)]
    Cpus(#[from] CpuError),
    /// KVM's supported CPUID cannot be read.
    #[error("Cannot read KVM's supported CPUID from /dev/kvm")]
    SupportedCpuid(#[source] kvm_ioctls::Error),
    /// KVM has no steal time of its own.
    #[error("KVM offers no steal time here: its CPUID lacks feature bit 5")]
    KernelLacksStealTime,
    /// KVM lacks a capability of the MSR filter.
    #[error("KVM cannot pass MSR accesses to userspace: {0} is missing, which Linux 5.10 has")]
    MsrFilterMissing(&'static str),
    /// KVM refuses the MSR filter.
    #[error("Cannot set KVM's MSR filter")]
    MsrFilter(#[source] kvm_ioctls::Error),
    /// KVM refuses a saved MSR value.
    #[error("KVM refuses {msr:#x} for the steal-time MSR of vCPU {vcpu}")]
    Restore {
        /// The vCPU.
        vcpu: VcpuId,
        /// The saved value.
        msr: u64,
    },
    /// The saved form has another version.
    #[error("Saved steal time has version {saved}, and this monitor reads version {supported}")]
    SavedVersion {
        /// The version of the saved form.
        saved: u32,
        /// The version that this library reads.
        supported: u32,
    },
    /// The saved guest has another number of vCPUs.
    #[error("Saved steal time has {saved} vCPUs, and this guest has {here}")]
    SavedVcpus {
        /// vCPUs in the saved form.
        saved: usize,
        /// vCPUs of the guest.
        here: usize,
    },
    /// A saved MSR value has reserved bits set: no guest can have written it.
    #[error("Saved steal time of vCPU {vcpu} has MSR value {msr:#x}, whose reserved bits are set")]
    SavedReserved {
        /// The vCPU.
        vcpu: VcpuId,
        /// The saved value.
        msr: u64,
    },
    /// The saved guest has registered a record, and this one has no steal time.
    #[error("Saved steal time of vCPU {vcpu} has MSR value {msr:#x}, and this guest has no publisher")]
    SavedUnpublished {
        /// The vCPU.
        vcpu: VcpuId,
        /// The saved value.
        msr: u64,
    },
}

impl StealTimeError {
    /// Returns the choice of a publisher that does without what is missing, if there is one.
    ///
    /// The library does not know how its caller chooses. The caller names the option that does.
    pub fn alternative(&self) -> Option<PublisherChoice> {
        let kind = match self {
            Self::Bpf(error) => error.alternative()?,
            Self::Perf(PerfError::Failed { .. }) => return None,
            Self::Perf(_) => PublisherKind::Monitor,
            Self::MsrFilterMissing(_) => PublisherKind::Kernel,
            Self::NoKickSignal(_) | Self::KernelLacksStealTime => PublisherKind::Bpf,
            Self::SavedUnpublished { .. } => return Some(PublisherChoice::Auto),
            _ => return None,
        };
        Some(PublisherChoice::Only(kind))
    }
}
