//! What can go wrong with a vCPU's thread.

use std::io;

use protocol::VcpuId;

use host::cpus::CpuError;
use steal_time::publisher::StealTimeError;

/// A vCPU thread failed, by no fault of the guest.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// KVM refuses to run it.
    #[error("KVM cannot run vCPU {vcpu}")]
    Run {
        /// The vCPU.
        vcpu: VcpuId,
        /// KVM's reason.
        source: kvm_ioctls::Error,
    },
    /// KVM refuses its initial state.
    #[error("KVM refuses the initial state of vCPU {vcpu}")]
    Setup {
        /// The vCPU.
        vcpu: VcpuId,
        /// KVM's reason.
        source: kvm_ioctls::Error,
    },
    /// The kick signal cannot be arranged.
    #[error("Cannot set the signal mask of vCPU {vcpu}")]
    SignalMask {
        /// The vCPU.
        vcpu: VcpuId,
        /// The host's reason.
        source: io::Error,
    },
    /// The thread cannot be confined.
    #[error("Cannot place the thread of vCPU {vcpu}")]
    CpuHandoff {
        /// The vCPU.
        vcpu: VcpuId,
        /// The host's reason.
        source: CpuError,
    },
    /// KVM does not note that the guest was paused.
    #[error("KVM cannot tell the guest that it was paused, at vCPU {vcpu}")]
    TellPaused {
        /// The vCPU.
        vcpu: VcpuId,
        /// KVM's reason.
        source: kvm_ioctls::Error,
    },
    /// The publisher failed.
    #[error("Cannot publish steal time of vCPU {vcpu}")]
    Publish {
        /// The vCPU.
        vcpu: VcpuId,
        /// The publisher's reason.
        source: StealTimeError,
    },
}
