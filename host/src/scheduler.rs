//! What else decides where threads run: a scheduler of `sched_ext`, and core scheduling.
//!
//! Source: Linux `Documentation/scheduler/sched-ext.rst` and
//! `Documentation/admin-guide/hw-vuln/core-scheduling.rst`.

#![expect(unsafe_code, reason = "prctl(PR_SCHED_CORE), which the standard library does not have")]

use std::{fs, io};

use libc::pid_t;

const SCHED_EXT: &str = "/sys/kernel/sched_ext";

/// Reads the state of `sched_ext`, for instance `disabled`, or `enabled` with the name of the
/// loaded scheduler. `None` if the kernel has no `sched_ext`.
pub fn sched_ext() -> Option<String> {
    let read = |file| Some(fs::read_to_string(format!("{SCHED_EXT}/{file}")).ok()?.trim().to_owned());
    let state = read("state")?;
    Some(match read("root/ops") {
        Some(name) => format!("{state}, scheduler {name}"),
        None => state,
    })
}

/// Reads the core-scheduling cookie of thread `tid`; 0 is the calling thread. A cookie of 0 is
/// none: the thread shares a core with any other.
///
/// # Errors
/// The error of prctl(2). `EINVAL`: the kernel has no core scheduling. `ENODEV`: no core has two
/// hardware threads.
pub fn core_cookie(tid: pid_t) -> io::Result<u64> {
    let (mut cookie, one_thread) = (0_u64, 0_u64);
    // SAFETY: the kernel writes 8 bytes to `cookie`; the other arguments are numbers.
    let read = unsafe {
        libc::prctl(libc::PR_SCHED_CORE, libc::PR_SCHED_CORE_GET, tid, one_thread, &raw mut cookie)
    };
    if read == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}
