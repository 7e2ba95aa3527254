//! The choice of a mechanism: by the user's request, the host's permissions and the publisher.

use std::io;

use super::class::ClassMechanism;
use super::deschedule::DescheduleMechanism;
use super::mechanism::{Mechanism, MechanismChoice, MechanismKind};
use super::vcpu_threads::VcpuThreads;
use crate::guest::RunError;
use host::thread::{Class, set_own_class};
use steal_time::publisher::PublisherKind;

/// A mechanism, and why it was chosen.
#[derive(Debug)]
pub(super) struct Chosen {
    pub(super) mechanism: Box<dyn Mechanism>,
    pub(super) why: String,
}

/// Chooses a mechanism for `vcpu_threads`, whose records `publisher` writes.
///
/// # Errors
/// [`RunError::Mechanism`] if the host refuses the requested mechanism; [`RunError::Scheduler`] if
/// it has no timers left.
pub(super) fn choose(
    choice: MechanismChoice,
    publisher: PublisherKind,
    vcpu_threads: VcpuThreads,
) -> Result<Chosen, RunError> {
    let (kind, why) = match (choice, class_is_refused()) {
        (MechanismChoice::Only(MechanismKind::Class), Some(why)) => {
            let (kind, other) = (MechanismKind::Class, MechanismKind::Deschedule);
            return Err(RunError::Mechanism { kind, why, other });
        }
        (MechanismChoice::Only(kind), _) => (kind, "as requested".to_owned()),
        (MechanismChoice::Auto, Some(why)) => {
            (MechanismKind::Deschedule, format!("class is not available: {why}"))
        }
        // Their threads are of the fair class, and would not get a CPU to publish on.
        (MechanismChoice::Auto, None)
            if matches!(publisher, PublisherKind::Perf | PublisherKind::Monitor) =>
        {
            (MechanismKind::Deschedule, format!("class would starve publisher {publisher}"))
        }
        (MechanismChoice::Auto, None) => (MechanismKind::Class, "the best that this host allows".to_owned()),
    };
    let mechanism: Box<dyn Mechanism> = match kind {
        MechanismKind::Class => Box::new(ClassMechanism::new(vcpu_threads)),
        MechanismKind::Deschedule => {
            Box::new(DescheduleMechanism::new(vcpu_threads).map_err(RunError::Scheduler)?)
        }
    };
    Ok(Chosen { mechanism, why })
}

/// Returns why the host refuses this process real-time classes; `None` if it allows them.
pub fn class_is_refused() -> Option<String> {
    let probe = std::thread::spawn(|| set_own_class(Class::Fifo(1)));
    let refused: io::Error = probe.join().ok()?.err()?;
    Some(why_refused(&refused))
}

/// Returns why the host refuses a real-time class, with the cure where the error number states it.
fn why_refused(error: &io::Error) -> String {
    let cure = match error.raw_os_error() {
        Some(libc::EPERM) => {
            "; it needs CAP_SYS_NICE, or ulimit -r; in a cgroup of version 1, cpu.rt_runtime_us"
        }
        Some(libc::EBUSY) => {
            "; the CPU time for real-time classes is used up: raise kernel.sched_rt_runtime_us"
        }
        Some(libc::ENOSYS) => "; a container's seccomp profile may forbid sched_setattr(2)",
        _ => "",
    };
    format!("a real-time class is refused ({error}{cure})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_class_is_explained_by_its_error_number() {
        let why = |errno| why_refused(&io::Error::from_raw_os_error(errno));
        assert!(why(libc::EPERM).contains("CAP_SYS_NICE"));
        assert!(why(libc::EBUSY).contains("kernel.sched_rt_runtime_us"));
        assert!(why(libc::ENOSYS).contains("seccomp"));
        assert!(!why(libc::EINVAL).contains(';'), "no cure is invented");
    }
}
