//! Threads, by the name that the kernel gives them.

#![expect(unsafe_code, reason = "gettid, by its number")]

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
