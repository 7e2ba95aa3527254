//! Kicks: a signal that makes a vCPU thread leave `KVM_RUN`, without a lost wake-up.
//!
//! The race: a thread checks for requests, finds none, and the signal arrives just before it enters
//! `KVM_RUN`. A signal handler would run there, and the thread would then stay in the guest. So the
//! kick signal is blocked in all threads, and only KVM unblocks it, for the duration of `KVM_RUN`
//! (`KVM_SET_SIGNAL_MASK` with [`mask_without_kick`]). A kick sent at any time stays pending until
//! the thread is inside `KVM_RUN`, which then returns `EINTR`. KVM restores the mask before it
//! returns, so the signal is never delivered and needs no handler. After `EINTR` the thread calls
//! [`drain`].
//!
//! Protocol: the sender first writes its request, then calls [`KickHandle::kick`]. The thread first
//! drains, then reads requests.
//!
//! Source: Linux `Documentation/virt/kvm/api.rst`, 4.21 `KVM_SET_SIGNAL_MASK`;
//! `virt/kvm/kvm_main.c`, `kvm_sigset_activate`.

#![expect(unsafe_code, reason = "signal masks and tgkill")]

use std::io;
use std::mem::MaybeUninit;
use std::time::Duration;

use libc::{c_int, pid_t, sigset_t};
use nix::sys::time::TimeSpec;

use crate::thread::own_tid;

/// The kick signal. It is a standard signal, so kicks coalesce; a real-time signal would queue, and
/// could hit a limit.
const KICK: c_int = libc::SIGUSR1;

/// Returns the kick signal, for kernel interfaces that send one, such as a timer.
pub fn signal() -> c_int {
    KICK
}

/// Blocks the kick signal in the calling thread, and in threads that it creates afterwards.
///
/// # Errors
/// `pthread_sigmask(3)` failed.
pub fn block() -> io::Result<()> {
    let kick = kick_set();
    // SAFETY: `kick` is an initialised set; a null pointer declines the old mask.
    check(unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const kick, std::ptr::null_mut()) })
}

/// Returns the calling thread's signal mask with the kick signal unblocked: the mask for `KVM_RUN`.
///
/// # Errors
/// `pthread_sigmask(3)` failed.
pub fn mask_without_kick() -> io::Result<sigset_t> {
    let mut mask = empty_set();
    // SAFETY: a null new set leaves the mask as it is; the present one is written to `mask`.
    check(unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, std::ptr::null(), &raw mut mask) })?;
    // SAFETY: `mask` is an initialised set and KICK a valid signal.
    unsafe { libc::sigdelset(&raw mut mask, KICK) };
    Ok(mask)
}

/// Discards a pending kick of the calling thread, if there is one.
pub fn drain() {
    wait(Duration::ZERO);
}

/// Waits up to `limit` for a kick of the calling thread, and discards it. Returns whether it came.
pub fn wait(limit: Duration) -> bool {
    let kick = kick_set();
    let limit = TimeSpec::from(limit);
    // SAFETY: set and timeout are initialised; a null pointer declines the signal's information.
    let signal = unsafe { libc::sigtimedwait(&raw const kick, std::ptr::null_mut(), limit.as_ref()) };
    signal == KICK
}

/// Kicks one thread of this process. It can be copied and sent to any thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KickHandle {
    tid: pid_t,
}

impl KickHandle {
    /// Returns a handle that kicks the calling thread.
    pub fn of_this_thread() -> Self {
        Self { tid: own_tid() }
    }

    /// Returns the thread's ID, as in `/proc/self/task`.
    pub fn tid(self) -> pid_t {
        self.tid
    }

    /// Makes the thread leave `KVM_RUN`, or return from its next `KVM_RUN` at once.
    ///
    /// A thread that has ended needs no kick, so the result of tgkill(2) is ignored.
    pub fn kick(self) {
        signal_thread(self.tid, KICK);
    }
}

/// Sends `signal` to thread `tid` of this process, which blocks or handles it. The error of a
/// thread that has ended is ignored: it needs no signal.
pub fn signal_thread(tid: pid_t, signal: c_int) {
    let process = std::process::id();
    // SAFETY: tgkill(2) takes no pointers. The signal goes to a thread of this process only.
    unsafe { libc::syscall(libc::SYS_tgkill, process, tid, signal) };
}

/// Returns the set of the kick signal.
fn kick_set() -> sigset_t {
    let mut set = empty_set();
    // SAFETY: `set` is an initialised set and KICK a valid signal.
    unsafe { libc::sigaddset(&raw mut set, KICK) };
    set
}

fn empty_set() -> sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset writes the whole set.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: sigemptyset has initialised it.
    unsafe { set.assume_init() }
}

/// Converts the result of a call that returns an error number.
fn check(errno: c_int) -> io::Result<()> {
    if errno == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(errno)) }
}
