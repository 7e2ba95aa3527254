//! Children: waiting for one, and what it used.

#![expect(unsafe_code, reason = "wait4, which the standard library does not have")]

use std::io;
use std::mem::MaybeUninit;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};

/// A child that has ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// How.
    pub status: ExitStatus,
    /// Its peak resident size (KiB).
    pub peak_kib: u64,
}

/// Waits for `child`, which nobody else waits for.
///
/// # Errors
/// The host's reason.
pub fn wait(child: &Child) -> io::Result<Ended> {
    let pid = libc::pid_t::try_from(child.id()).map_err(io::Error::other)?;
    let mut status = 0;
    let mut usage = MaybeUninit::<libc::rusage>::uninit();
    loop {
        // SAFETY: both places are valid to write to, and the kernel fills them when it returns a process.
        let waited = unsafe { libc::wait4(pid, &raw mut status, 0, usage.as_mut_ptr()) };
        if waited == pid {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    // SAFETY: wait4 returned a process, so it has written the usage.
    let usage = unsafe { usage.assume_init() };
    Ok(Ended { status: ExitStatus::from_raw(status), peak_kib: u64::try_from(usage.ru_maxrss).unwrap_or(0) })
}
