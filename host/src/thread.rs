//! Threads, by the name that the kernel gives them.

#![expect(unsafe_code, reason = "gettid, by its number; sched_setattr, which nix does not have")]

use std::io;

use libc::pid_t;

/// The calling thread's id, as in `/proc/self/task`.
///
/// It is asked for by number. The standard library refers to the C library's `gettid` weakly, for those that lack it; a
/// static binary for which that is the only reference left has none, and a call would go to address 0.
pub fn own_tid() -> pid_t {
    // SAFETY: the call takes nothing, touches nothing, and cannot fail.
    let tid = unsafe { libc::syscall(libc::SYS_gettid) };
    pid_t::try_from(tid).unwrap_or(0)
}

/// How a thread is scheduled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// As most are.
    Fair,
    /// As most are, but it preempts nobody when it wakes.
    Batch,
    /// Before all of the fair class, with this priority.
    Fifo(u8),
    /// Before everybody: so much CPU time in each period (ns).
    Deadline {
        /// CPU time.
        runtime: u64,
        /// In which.
        period: u64,
    },
    /// As most are, with this niceness and this slice (ns; 0 for the host's own).
    Tuned {
        /// As nice(2).
        nice: i8,
        /// The slice.
        slice: u64,
    },
}

/// The size of what says how a thread is scheduled.
#[expect(clippy::cast_possible_truncation, reason = "56")]
const ATTRIBUTES: u32 = size_of::<libc::sched_attr>() as u32;

/// Changes the calling thread's class.
///
/// # Errors
/// As [`set_class`].
pub fn set_own_class(class: Class) -> io::Result<()> {
    set_class(0, class)
}

/// Changes the class of thread `tid`; 0 is the calling thread.
///
/// # Errors
/// The host's reason: it takes `CAP_SYS_NICE`, or a resource limit (`RLIMIT_RTPRIO`) of that priority.
pub fn set_class(tid: pid_t, class: Class) -> io::Result<()> {
    let (policy, nice, priority, runtime, period) = match class {
        Class::Fair => (libc::SCHED_OTHER, 0, 0, 0, 0),
        Class::Batch => (libc::SCHED_BATCH, 0, 0, 0, 0),
        Class::Fifo(priority) => (libc::SCHED_FIFO, 0, u32::from(priority), 0, 0),
        Class::Deadline { runtime, period } => (libc::SCHED_DEADLINE, 0, 0, runtime, period),
        Class::Tuned { nice, slice } => (libc::SCHED_OTHER, i32::from(nice), 0, slice, 0),
    };
    let attributes = libc::sched_attr {
        size: ATTRIBUTES,
        sched_policy: policy.cast_unsigned(),
        sched_flags: 0,
        sched_nice: nice,
        sched_priority: priority,
        sched_runtime: runtime,
        sched_deadline: period,
        sched_period: period,
    };
    // SAFETY: the call reads the attributes, whose size they say, and touches no other memory.
    match unsafe { libc::syscall(libc::SYS_sched_setattr, tid, &raw const attributes, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_tid_names_a_task_of_this_process_another_in_each_thread() {
        let task = |tid: pid_t| std::path::Path::new(&format!("/proc/self/task/{tid}")).exists();
        let tid = own_tid();
        assert!(task(tid));
        let other = std::thread::spawn(own_tid).join().unwrap();
        assert_ne!(tid, other);
    }
}
