//! Choosing a mechanism: what was asked for, what the host allows, and whom the publisher can be heard beside.

use std::io;

use super::SchedError;
use super::class::Classes;
use super::mechanism::{Mechanism, MechanismChoice, MechanismKind};
use super::park::Parks;
use super::vcpu_threads::VcpuThreads;
use host::thread::{Class, set_own_class};
use steal_time::publisher::PublisherKind;

/// A mechanism, and why it is this one.
#[derive(Debug)]
pub(super) struct Chosen {
    pub(super) mechanism: Box<dyn Mechanism>,
    pub(super) why: String,
}

/// Chooses a mechanism for the threads in `vcpu_threads`, whose records `publisher` keeps.
pub(super) fn choose(
    choice: MechanismChoice,
    publisher: PublisherKind,
    vcpu_threads: VcpuThreads,
) -> Result<Chosen, SchedError> {
    let park = |vcpu_threads, why: String| {
        let mechanism: Box<dyn Mechanism> = Box::new(Parks::new(vcpu_threads).map_err(SchedError::TakeOver)?);
        Ok(Chosen { mechanism, why })
    };
    let class = |vcpu_threads, why: &str| Chosen {
        mechanism: Box::new(Classes::new(vcpu_threads)),
        why: why.to_owned(),
    };
    match (choice, class_is_refused()) {
        (MechanismChoice::Only(MechanismKind::Deschedule), _) => park(vcpu_threads, "as asked".to_owned()),
        (MechanismChoice::Only(MechanismKind::Class), None) => Ok(class(vcpu_threads, "as asked")),
        (MechanismChoice::Only(kind), Some(why)) => {
            Err(SchedError::Mechanism { kind, why, other: MechanismKind::Deschedule })
        }
        (MechanismChoice::Auto, Some(why)) => park(vcpu_threads, format!("class is not to be had: {why}")),
        // Threads of ours that are of the fair class would not get a CPU to publish on.
        (MechanismChoice::Auto, None)
            if matches!(publisher, PublisherKind::Perf | PublisherKind::Monitor) =>
        {
            park(vcpu_threads, format!("with class, publisher {publisher} would not be heard"))
        }
        (MechanismChoice::Auto, None) => Ok(class(vcpu_threads, "the best that this host allows")),
    }
}

/// Why threads of this process may not be of a real-time class, if so.
pub fn class_is_refused() -> Option<String> {
    let probe = std::thread::spawn(|| set_own_class(Class::Fifo(1)));
    let refused: io::Error = probe.join().ok()?.err()?;
    Some(format!(
        "a real-time class is refused ({refused}; it takes CAP_SYS_NICE, or ulimit -r; in a cgroup of version 1, \
         cpu.rt_runtime_us)"
    ))
}
