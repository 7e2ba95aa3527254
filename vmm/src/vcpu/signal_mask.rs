//! The signal mask that KVM sets while a vCPU is in `KVM_RUN`: it unblocks the kick signal there.

#![expect(unsafe_code, reason = "KVM_SET_SIGNAL_MASK, which kvm-ioctls does not wrap")]

use std::io;
use std::mem::size_of;

use host::kick;
use kvm_bindings::{KVMIO, kvm_signal_mask};
use kvm_ioctls::VcpuFd;
use libc::sigset_t;
use vmm_sys_util::ioctl::{_IOC_WRITE, ioctl_expr, ioctl_with_ref};

/// The size of the kernel's `sigset_t`: 64 signals.
const KERNEL_SIGSET_BYTES: usize = 8;
const _: () = assert!(size_of::<sigset_t>() >= KERNEL_SIGSET_BYTES);

/// `_IOW(KVMIO, 0x8b, struct kvm_signal_mask)`. The set that follows the structure does not count
/// in its size.
const KVM_SET_SIGNAL_MASK: libc::c_ulong = ioctl_expr(_IOC_WRITE, KVMIO, 0x8b, 4);
const _: () = assert!(size_of::<kvm_signal_mask>() == 4);

/// `struct kvm_signal_mask`, with its set.
#[repr(C)]
struct SignalMask {
    len: u32,
    sigset: [u8; KERNEL_SIGSET_BYTES],
}

/// Makes KVM unblock the kick signal while `vcpu` is in `KVM_RUN`. All other signals keep the
/// calling thread's mask.
///
/// The vCPU's thread calls it, with the kick signal blocked (see [`host::kick`]).
///
/// # Errors
/// `pthread_sigmask(3)` or the ioctl failed.
pub(super) fn unblock_kick_in_run(vcpu: &VcpuFd) -> io::Result<()> {
    let mask = kick::mask_without_kick()?;
    // SAFETY: `mask` is initialised and at least 8 bytes long (asserted above). The C library's set
    // begins with the kernel's 64 bits.
    let sigset = unsafe { (&raw const mask).cast::<[u8; KERNEL_SIGSET_BYTES]>().read_unaligned() };
    let mask = SignalMask { len: 8, sigset };
    // SAFETY: the ioctl reads 4 bytes of length and then that many bytes of set; `mask` holds both,
    // without padding.
    match unsafe { ioctl_with_ref(vcpu, KVM_SET_SIGNAL_MASK, &mask) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
