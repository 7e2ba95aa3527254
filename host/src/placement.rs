//! Placement of a helper thread that must be quick and must not take a CPU from the threads it
//! serves.

use super::cpus::Cpus;
use super::thread::{Class, set_own_class};

/// Where a helper thread runs, and in which scheduling class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// On spare CPUs, in `SCHED_FIFO`: it preempts all other tasks there.
    SpareFifo,
    /// On spare CPUs, in `SCHED_OTHER`: the host refuses a real-time class (`CAP_SYS_NICE`,
    /// `RLIMIT_RTPRIO`).
    SpareFair,
    /// On the served threads' CPUs, in `SCHED_BATCH`: no CPU is spare. It does not preempt when it
    /// wakes.
    SharedBatch,
}

/// Places the calling thread beside threads that use `served`, on other CPUs if this process may
/// use any.
///
/// On other CPUs it gets `SCHED_FIFO` with `priority` (1 to 99) if the host allows that. Without
/// other CPUs it shares those of the served threads, in `SCHED_BATCH`, so that it preempts none of
/// them.
pub fn place_beside(served: &Cpus, priority: u8) -> Placement {
    let spare = Cpus::allowed().ok().and_then(|allowed| allowed.without(served));
    match spare.map(|spare| spare.pin_this_thread()) {
        Some(Ok(())) if set_own_class(Class::Fifo(priority)).is_ok() => Placement::SpareFifo,
        Some(Ok(())) => Placement::SpareFair,
        Some(Err(_)) | None => {
            // If the host refuses even this, the thread keeps its class
            let _ = set_own_class(Class::Batch);
            Placement::SharedBatch
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thread_beside_all_cpus_shares_them_and_one_beside_some_does_not() {
        let allowed = Cpus::allowed().unwrap();
        let shared = std::thread::spawn(move || place_beside(&Cpus::allowed().unwrap(), 1)).join().unwrap();
        assert_eq!(shared, Placement::SharedBatch);
        if allowed.count() < 2 {
            return eprintln!("SKIPPED the rest: only one CPU may be used");
        }
        let first = allowed.first(1);
        let (placement, left) = std::thread::spawn(move || {
            let placement = place_beside(&first, 1);
            (placement, Cpus::allowed().unwrap().without(&first))
        })
        .join()
        .unwrap();
        assert_ne!(placement, Placement::SharedBatch);
        assert_eq!(left.unwrap().count(), allowed.count() - 1);
    }
}
