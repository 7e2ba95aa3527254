//! Waiting for a child process, and its peak memory use.

#![expect(unsafe_code, reason = "wait4, which the standard library does not have")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::termination;

/// The exit of a child process.
#[derive(Clone, Copy, Debug)]
pub struct ChildExit {
    /// Exit code or signal.
    pub status: ExitStatus,
    /// Peak resident set size (KiB).
    pub peak_rss_kib: u64,
}

/// Waits for `child` to exit, and reaps it. Kills it first when termination is requested. Nothing
/// else may wait for it, before or after.
///
/// # Errors
/// `pidfd_open(2)` or wait4(2) failed, for instance because the child was already reaped.
pub fn wait(child: &mut Child) -> io::Result<ChildExit> {
    let pid = libc::pid_t::try_from(child.id()).map_err(io::Error::other)?;
    let process = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    let ended = pidfd_open(process, PidfdFlags::empty())?;
    let fds = [Some(ended.as_fd()), termination::fd()].into_iter().flatten();
    let mut fds: Vec<_> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    while poll(&mut fds, PollTimeout::NONE) == Err(Errno::EINTR) {}
    if termination::requested().is_some() {
        child.kill()?;
    }
    let mut status = 0;
    let mut usage = MaybeUninit::<libc::rusage>::uninit();
    loop {
        // SAFETY: `status` and `usage` are valid for writes of the types that wait4 stores there.
        let waited = unsafe { libc::wait4(pid, &raw mut status, 0, usage.as_mut_ptr()) };
        if waited == pid {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    // SAFETY: wait4 returned a process, and then it has written the whole structure.
    let usage = unsafe { usage.assume_init() };
    Ok(ChildExit {
        status: ExitStatus::from_raw(status),
        peak_rss_kib: u64::try_from(usage.ru_maxrss).unwrap_or(0),
    })
}
