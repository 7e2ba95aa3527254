//! A BPF program at a tracepoint, by way of perf: what there is where the kernel does not describe its types.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use super::sys;

/// Has a program run at each hit of the tracepoint with this id, on any CPU, until the descriptor is closed.
///
/// # Errors
/// The host does not allow it: it takes `CAP_PERFMON`.
pub fn run_at_tracepoint(program: BorrowedFd<'_>, id: u64) -> io::Result<OwnedFd> {
    // The event counts on one CPU. Its program belongs to the tracepoint, and runs on all.
    let event = sys::open_tracepoint(id, nix::sched::sched_getcpu()?)?;
    sys::set_program(&event, program)?;
    Ok(event)
}
