//! Dispositions of signals, and descriptors that `vmm-sys-util` does not lend.

#![expect(unsafe_code, reason = "sigaction as a query, and a borrow of an eventfd's descriptor")]

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use nix::sys::signal::Signal;
use vmm_sys_util::eventfd::EventFd;

/// Returns whether this process ignores `signal`. A child inherits that, as from nohup(1).
pub(crate) fn is_ignored(signal: Signal) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: a null pointer installs no action; the present one is written to `action`.
    let queried = unsafe { libc::sigaction(signal as libc::c_int, ptr::null(), action.as_mut_ptr()) };
    // SAFETY: sigaction succeeded, so it has written the whole structure.
    queried == 0 && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

/// Borrows the descriptor of `event`.
pub(crate) fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: `event` owns the descriptor, and outlives the borrow.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}
