//! Attaches a BPF program to a tracepoint through perf, which needs no kernel BTF.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use super::sys;

/// Attaches `program` to the tracepoint with this ID, on all CPUs, until the returned descriptor is
/// closed.
///
/// # Errors
/// `perf_event_open(2)` or its ioctl failed; both need `CAP_PERFMON`.
pub fn attach_to_tracepoint(program: BorrowedFd<'_>, id: u64) -> io::Result<OwnedFd> {
    // The event counts hits on one CPU, but its program belongs to the tracepoint and runs on all
    let event = sys::open_tracepoint(id, nix::sched::sched_getcpu()?)?;
    sys::set_program(&event, program)?;
    Ok(event)
}
