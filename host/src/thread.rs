//! Thread IDs and scheduling classes.
//!
//! A change of class is temporary, and what was there before is the user's: a nice value, a slice,
//! `SCHED_BATCH`. [`Attributes`] hold it for one thread. [`Class::Fair`] stands for what the
//! process had when it first changed a class, which its threads inherit.

#![expect(
    unsafe_code,
    reason = "gettid by its number, and sched_getattr and sched_setattr, which nix does not have"
)]

use std::io;
use std::sync::OnceLock;

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
    /// The class, nice value and slice of the process before it changed any: mostly `SCHED_OTHER`.
    Fair,
    /// `SCHED_BATCH` with the nice value of [`Fair`](Self::Fair): like `SCHED_OTHER`, but a thread
    /// that wakes preempts no other.
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
    let base = base()?;
    let (policy, nice, priority, runtime, period) = match class {
        Class::Fair => return base.restore(tid),
        Class::Batch => (libc::SCHED_BATCH, base.nice(), 0, 0, 0),
        Class::Fifo(priority) => (libc::SCHED_FIFO, 0, u32::from(priority), 0, 0),
        Class::Deadline { runtime_ns, period_ns } => (libc::SCHED_DEADLINE, 0, 0, runtime_ns, period_ns),
        // A fair thread's slice goes in the field of the runtime
        Class::Tuned { nice, slice_ns } => (libc::SCHED_OTHER, i32::from(nice), 0, slice_ns, 0),
    };
    let attributes = Attributes(libc::sched_attr {
        size: ATTRIBUTES_SIZE,
        sched_policy: policy.cast_unsigned(),
        // The kernel refuses to clear the flag without CAP_SYS_NICE
        sched_flags: base.0.sched_flags & RESET_ON_FORK,
        sched_nice: nice,
        sched_priority: priority,
        sched_runtime: runtime,
        sched_deadline: period,
        sched_period: period,
    });
    attributes.restore(tid)
}

/// `SCHED_FLAG_RESET_ON_FORK`.
const RESET_ON_FORK: u64 = 1;

/// Returns the attributes that the calling thread had at the first call.
fn base() -> io::Result<Attributes> {
    static BASE: OnceLock<Attributes> = OnceLock::new();
    match BASE.get() {
        Some(base) => Ok(*base),
        None => Attributes::of(0).map(|now| *BASE.get_or_init(|| now)),
    }
}

/// The scheduling attributes of a thread: class, nice value or priority, slice, and flags.
#[derive(Clone, Copy, Debug)]
pub struct Attributes(libc::sched_attr);

impl Attributes {
    /// Returns the attributes of thread `tid`; 0 is the calling thread.
    ///
    /// # Errors
    /// `sched_getattr(2)` failed: there is no such thread.
    pub fn of(tid: pid_t) -> io::Result<Self> {
        let mut attributes = libc::sched_attr {
            size: ATTRIBUTES_SIZE,
            sched_policy: 0,
            sched_flags: 0,
            sched_nice: 0,
            sched_priority: 0,
            sched_runtime: 0,
            sched_deadline: 0,
            sched_period: 0,
        };
        // SAFETY: sched_getattr writes up to the given size at `attributes`, which is as long.
        let result =
            unsafe { libc::syscall(libc::SYS_sched_getattr, tid, &raw mut attributes, ATTRIBUTES_SIZE, 0) };
        match result {
            0 => Ok(Self(libc::sched_attr { size: ATTRIBUTES_SIZE, ..attributes })),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Gives thread `tid` these attributes; 0 is the calling thread.
    ///
    /// # Errors
    /// See [`set_class`].
    pub fn restore(&self, tid: pid_t) -> io::Result<()> {
        // SAFETY: sched_setattr reads `size` bytes at the address, which holds as many, and
        // accesses no other memory.
        match unsafe { libc::syscall(libc::SYS_sched_setattr, tid, &raw const self.0, 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Returns the nice value; 0 in a real-time class.
    pub fn nice(&self) -> i32 {
        self.0.sched_nice
    }
}

impl PartialEq for Attributes {
    fn eq(&self, other: &Self) -> bool {
        let fields = |Self(it): &Self| {
            let classes = (it.sched_policy, it.sched_flags, it.sched_nice, it.sched_priority);
            (classes, it.sched_runtime, it.sched_deadline, it.sched_period)
        };
        fields(self) == fields(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A nice value may be raised without privileges, and so may the class.
    #[test]
    fn attributes_of_any_thread_are_put_back_as_they_were() {
        let check = || {
            set_own_class(Class::Tuned { nice: 19, slice_ns: 5_000_000 }).unwrap();
            let before = Attributes::of(0).unwrap();
            assert_eq!(before.nice(), 19);
            let changed = set_own_class(Class::Fifo(1)).or_else(|_| set_own_class(Class::Batch));
            assert!(changed.is_err() || Attributes::of(0).unwrap() != before);
            before.restore(0).unwrap();
            assert_eq!(Attributes::of(0).unwrap(), before);
        };
        std::thread::spawn(check).join().unwrap();
    }

    #[test]
    fn fair_class_is_what_the_process_had_and_batch_keeps_its_nice_value() {
        let check = || {
            let before = Attributes::of(0).unwrap();
            let is_raised = set_own_class(Class::Fifo(1)).is_ok();
            assert!(!is_raised || Attributes::of(0).unwrap() != before);
            set_own_class(Class::Fair).unwrap();
            assert_eq!(Attributes::of(0).unwrap(), before);
            set_own_class(Class::Batch).unwrap();
            assert_eq!(Attributes::of(0).unwrap().nice(), before.nice());
        };
        std::thread::spawn(check).join().unwrap();
    }

    #[test]
    fn own_tid_is_a_task_of_this_process_and_differs_between_threads() {
        let is_task = |tid: pid_t| std::path::Path::new(&format!("/proc/self/task/{tid}")).exists();
        let tid = own_tid();
        assert!(is_task(tid));
        let other = std::thread::spawn(own_tid).join().unwrap();
        assert_ne!(tid, other);
    }
}
