//! Thread IDs and scheduling classes.

#![expect(unsafe_code, reason = "gettid by its number, and sched_setattr, which nix does not have")]

use std::io;

use libc::pid_t;

/// Returns the calling thread's ID, as in `/proc/self/task`.
///
/// It calls gettid(2) by number. The standard library refers to the C library's `gettid` weakly; in
/// a static binary without any other reference the symbol is absent, and a call would jump to
/// address 0.
pub fn own_tid() -> pid_t {
    // SAFETY: gettid takes no argument, accesses no memory of ours, and cannot fail.
    let tid = unsafe { libc::syscall(libc::SYS_gettid) };
    pid_t::try_from(tid).unwrap_or(0)
}

/// A scheduling class with its parameters (sched(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// `SCHED_OTHER` with nice 0 and the host's slice: the default.
    Fair,
    /// `SCHED_BATCH`: like `SCHED_OTHER`, but a thread that wakes preempts no other.
    Batch,
    /// `SCHED_FIFO` with this priority (1 to 99): preempts all fair tasks.
    Fifo(u8),
    /// `SCHED_DEADLINE`: preempts all other classes, within a budget.
    Deadline {
        /// CPU time in each period (ns).
        runtime_ns: u64,
        /// Length of a period, and deadline in it (ns).
        period_ns: u64,
    },
    /// `SCHED_OTHER` with a nice value and a slice.
    Tuned {
        /// The nice value, -20 to 19; see nice(2).
        nice: i8,
        /// The slice (ns); 0 for the host's default. Linux before 6.12 ignores it.
        slice_ns: u64,
    },
}

/// The size of `struct sched_attr`, which the kernel reads from its first field.
#[expect(clippy::cast_possible_truncation, reason = "56")]
const ATTRIBUTES_SIZE: u32 = size_of::<libc::sched_attr>() as u32;

/// Sets the calling thread's scheduling class.
///
/// # Errors
/// See [`set_class`].
pub fn set_own_class(class: Class) -> io::Result<()> {
    set_class(0, class)
}

/// Sets the scheduling class of thread `tid`; 0 is the calling thread.
///
/// # Errors
/// `sched_setattr(2)` failed. `EPERM`: a real-time class or a negative nice value needs
/// `CAP_SYS_NICE` or a sufficient `RLIMIT_RTPRIO` or `RLIMIT_NICE`; a deadline needs
/// `CAP_SYS_NICE`. `EBUSY`: the CPU time for deadlines is used up.
pub fn set_class(tid: pid_t, class: Class) -> io::Result<()> {
    let (policy, nice, priority, runtime, period) = match class {
        Class::Fair => (libc::SCHED_OTHER, 0, 0, 0, 0),
        Class::Batch => (libc::SCHED_BATCH, 0, 0, 0, 0),
        Class::Fifo(priority) => (libc::SCHED_FIFO, 0, u32::from(priority), 0, 0),
        Class::Deadline { runtime_ns, period_ns } => (libc::SCHED_DEADLINE, 0, 0, runtime_ns, period_ns),
        // A fair thread's slice goes in the field of the runtime
        Class::Tuned { nice, slice_ns } => (libc::SCHED_OTHER, i32::from(nice), 0, slice_ns, 0),
    };
    let attributes = libc::sched_attr {
        size: ATTRIBUTES_SIZE,
        sched_policy: policy.cast_unsigned(),
        sched_flags: 0,
        sched_nice: nice,
        sched_priority: priority,
        sched_runtime: runtime,
        sched_deadline: period,
        sched_period: period,
    };
    // SAFETY: sched_setattr reads `size` bytes at `attributes`, which is as long, and accesses no
    // other memory.
    match unsafe { libc::syscall(libc::SYS_sched_setattr, tid, &raw const attributes, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_tid_is_a_task_of_this_process_and_differs_between_threads() {
        let is_task = |tid: pid_t| std::path::Path::new(&format!("/proc/self/task/{tid}")).exists();
        let tid = own_tid();
        assert!(is_task(tid));
        let other = std::thread::spawn(own_tid).join().unwrap();
        assert_ne!(tid, other);
    }
}
