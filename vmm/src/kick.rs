//! Kicks: getting a vCPU thread out of `KVM_RUN`, and losing none.
//!
//! The classic race: a thread looks whether something is wanted of it, nothing is, and the signal arrives just
//! before it enters `KVM_RUN`, where it then stays. Here the kick signal is blocked in every thread, always, and
//! KVM opens it only inside `KVM_RUN` (`KVM_SET_SIGNAL_MASK`). A kick sent at any moment stays pending until the
//! thread is inside, and makes `KVM_RUN` return `EINTR` then. It is never delivered, so there is no handler; after
//! `EINTR` the thread takes it off its pending signals with [`drain`].
//!
//! So: first write what is wanted, then [`KickHandle::kick`]; the thread first drains, then reads what is wanted.
//!
//! Source: Linux `Documentation/virt/kvm/api.rst`, 4.21 `KVM_SET_SIGNAL_MASK`; `virt/kvm/kvm_main.c`,
//! `kvm_sigset_activate`.

#![expect(unsafe_code, reason = "signal masks, tgkill and one ioctl that kvm-ioctls does not wrap")]

use std::io;
use std::mem::{MaybeUninit, size_of};

use kvm_bindings::{KVMIO, kvm_signal_mask};
use kvm_ioctls::VcpuFd;
use libc::{c_int, pid_t, sigset_t};
use vmm_sys_util::ioctl::{_IOC_WRITE, ioctl_expr, ioctl_with_ref};

use crate::host::thread::own_tid;

/// The kick signal. Not a real-time one: kicks coalesce, and no limit on queued signals can lose one.
const KICK: c_int = libc::SIGUSR1;

/// The kernel's `sigset_t`: 64 signals.
const KERNEL_SIGSET_BYTES: usize = 8;

/// `_IOW(KVMIO, 0x8b, struct kvm_signal_mask)`; the set that follows the structure does not count into its size.
const KVM_SET_SIGNAL_MASK: libc::c_ulong = ioctl_expr(_IOC_WRITE, KVMIO, 0x8b, 4);
const _: () = assert!(size_of::<kvm_signal_mask>() == 4);

/// `struct kvm_signal_mask` with its set.
#[repr(C)]
struct SignalMask {
    len: u32,
    sigset: [u8; KERNEL_SIGSET_BYTES],
}

/// The kick signal, for those who have the kernel send it.
pub fn signal() -> c_int {
    KICK
}

/// Blocks the kick signal in the calling thread and in those it will start.
///
/// # Errors
/// The host's reason.
pub fn block() -> io::Result<()> {
    let mut kick = empty_set();
    // SAFETY: `kick` is an initialised set and KICK a valid signal.
    unsafe { libc::sigaddset(&raw mut kick, KICK) };
    // SAFETY: the set is valid, and the old one is not asked for.
    check(unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const kick, std::ptr::null_mut()) })
}

/// Tells KVM to open the kick signal, and no other, while this vCPU is in `KVM_RUN`.
///
/// Called on the vCPU's thread, whose present mask is what holds inside but for the kick.
///
/// # Errors
/// The host's reason.
pub fn open_inside_run(vcpu: &VcpuFd) -> io::Result<()> {
    let mut blocked = empty_set();
    // SAFETY: with a null new set, only the present mask is written, to a valid place.
    check(unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, std::ptr::null(), &raw mut blocked) })?;
    // SAFETY: `blocked` is an initialised set and KICK a valid signal.
    unsafe { libc::sigdelset(&raw mut blocked, KICK) };
    let mut mask = SignalMask { len: 8, sigset: [0; KERNEL_SIGSET_BYTES] };
    const { assert!(size_of::<sigset_t>() >= KERNEL_SIGSET_BYTES) };
    // SAFETY: the C library's set begins with the kernel's 64 bits and is at least as long.
    let bits = unsafe { (&raw const blocked).cast::<[u8; KERNEL_SIGSET_BYTES]>().read_unaligned() };
    mask.sigset = bits;
    // SAFETY: the ioctl reads 4 bytes of length and, after them, as many bytes of set; both are in `mask`.
    match unsafe { ioctl_with_ref(vcpu, KVM_SET_SIGNAL_MASK, &mask) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes a pending kick off the calling thread's pending signals; does nothing where there is none.
pub fn drain() {
    let mut kick = empty_set();
    // SAFETY: `kick` is an initialised set and KICK a valid signal.
    unsafe { libc::sigaddset(&raw mut kick, KICK) };
    let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: set and timeout are valid, and no information on the signal is asked for.
    unsafe { libc::sigtimedwait(&raw const kick, std::ptr::null_mut(), &raw const now) };
}

/// The thread that a kick goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KickHandle {
    tid: pid_t,
}

impl KickHandle {
    /// A handle for the calling thread.
    pub fn of_this_thread() -> Self {
        Self { tid: own_tid() }
    }

    /// The thread's id, as in `/proc/self/task`.
    pub fn tid(self) -> pid_t {
        self.tid
    }

    /// Makes the thread leave `KVM_RUN`, or not stay there when it next enters.
    ///
    /// A thread that has ended cannot be kicked, and need not be: the kernel's answer is of no use.
    pub fn kick(self) {
        signal_thread(self.tid, KICK);
    }
}

/// Sends `signal` to thread `tid` of this process. A thread that has ended does not need it.
pub fn signal_thread(tid: pid_t, signal: c_int) {
    let process = std::process::id();
    // SAFETY: tgkill sends a signal to a thread of this process; the caller's threads block it or handle it.
    unsafe { libc::syscall(libc::SYS_tgkill, process, tid, signal) };
}

fn empty_set() -> sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset writes the whole set.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: it was just written.
    unsafe { set.assume_init() }
}

/// For calls that return an error number.
fn check(errno: c_int) -> io::Result<()> {
    if errno == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(errno)) }
}
