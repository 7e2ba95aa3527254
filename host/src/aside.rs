//! Standing aside: where a thread of ours runs that must be quick, and must not take a vCPU's CPU.

use super::cpus::Cpus;
use super::thread::{Class, set_own_class};

/// How a thread stands beside the vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// On CPUs of its own, before everybody else there.
    First,
    /// On CPUs of its own, in turn with everybody else there: a real-time class takes `CAP_SYS_NICE` or `RLIMIT_RTPRIO`.
    InTurn,
    /// On the vCPUs' CPUs, in turn: there are no others.
    Among,
}

/// Puts the calling thread beside vCPUs that use `vcpu_cpus`: on other CPUs where there are any, with this real-time
/// priority where that is allowed. Where there are none it preempts nobody.
pub fn step_aside(vcpu_cpus: &Cpus, priority: u8) -> Standing {
    let spare = Cpus::allowed().ok().and_then(|allowed| allowed.without(vcpu_cpus));
    match spare.map(|spare| spare.confine_this_thread()) {
        Some(Ok(())) if set_own_class(Class::Fifo(priority)).is_ok() => Standing::First,
        Some(Ok(())) => Standing::InTurn,
        // Should even that be refused, it runs as it did.
        Some(Err(_)) | None => {
            let _ = set_own_class(Class::Batch);
            Standing::Among
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thread_beside_all_cpus_is_among_the_vcpus_and_one_beside_some_is_not() {
        let allowed = Cpus::allowed().unwrap();
        let among = std::thread::spawn(move || step_aside(&Cpus::allowed().unwrap(), 1)).join().unwrap();
        assert_eq!(among, Standing::Among);
        if allowed.count() < 2 {
            return eprintln!("SKIPPED the rest: only one CPU may be used");
        }
        let first = allowed.first(1);
        let (standing, left) = std::thread::spawn(move || {
            let standing = step_aside(&first, 1);
            (standing, Cpus::allowed().unwrap().without(&first))
        })
        .join()
        .unwrap();
        assert_ne!(standing, Standing::Among);
        assert_eq!(left.unwrap().count(), allowed.count() - 1);
    }
}
