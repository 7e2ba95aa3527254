//! Mechanisms: making what was decided so.

use std::fmt;
use std::io;

use super::SteerError;
use super::class::Classes;
use super::hands::Hands;
use super::park::Parks;
use crate::host::thread::{Class, set_own_class};
use crate::policy::{Cpu, Ns, Scene, Vcpu};
use crate::publisher::PublisherKind;

/// How vCPU threads are made to run or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MechanismKind {
    /// By their scheduling class.
    Class,
    /// By taking them out of the guest.
    Park,
}

impl fmt::Display for MechanismKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Class => "class",
            Self::Park => "park",
        })
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MechanismChoice {
    /// The best that the host and the publisher allow.
    #[default]
    Auto,
    /// This one, or none.
    Only(MechanismKind),
}

/// See the module.
pub(super) trait Mechanism: fmt::Debug + Send {
    /// Which one this is.
    fn kind(&self) -> MechanismKind;

    /// Makes the vCPU threads do what `scene` says. What they do already costs nothing.
    fn settle(&mut self, scene: &Scene);

    /// A vCPU lives on that CPU from now on.
    fn place(&mut self, vcpu: Vcpu, cpu: Cpu);

    /// Asks the host to treat a vCPU in another way, where the host chooses.
    fn tune(&mut self, vcpu: Vcpu, nice: i8, slice: Ns);

    /// A vCPU is gone, or about to go home.
    fn lose(&mut self, vcpu: Vcpu);

    /// Gives the vCPU threads back to the host.
    fn let_go(&mut self);
}

/// A mechanism, and why it is this one.
#[derive(Debug)]
pub(super) struct Chosen {
    pub(super) mechanism: Box<dyn Mechanism>,
    pub(super) why: String,
}

/// Chooses a mechanism for the threads in `hands`, whose records `publisher` keeps.
pub(super) fn choose(
    choice: MechanismChoice,
    publisher: PublisherKind,
    hands: Hands,
) -> Result<Chosen, SteerError> {
    let park = |hands, why: String| {
        let mechanism: Box<dyn Mechanism> = Box::new(Parks::new(hands).map_err(SteerError::TakeOver)?);
        Ok(Chosen { mechanism, why })
    };
    let class = |hands, why: &str| Chosen { mechanism: Box::new(Classes::new(hands)), why: why.to_owned() };
    match (choice, class_is_refused()) {
        (MechanismChoice::Only(MechanismKind::Park), _) => park(hands, "as asked".to_owned()),
        (MechanismChoice::Only(MechanismKind::Class), None) => Ok(class(hands, "as asked")),
        (MechanismChoice::Only(kind), Some(why)) => {
            Err(SteerError::Mechanism { kind, why, other: MechanismKind::Park })
        }
        (MechanismChoice::Auto, Some(why)) => park(hands, format!("class is not to be had: {why}")),
        // Threads of ours that are of the fair class would not get a CPU to publish on.
        (MechanismChoice::Auto, None) if matches!(publisher, PublisherKind::Perf | PublisherKind::Park) => {
            park(hands, format!("with class, publisher {publisher} would not be heard"))
        }
        (MechanismChoice::Auto, None) => Ok(class(hands, "the best that this host allows")),
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
