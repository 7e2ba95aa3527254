//! Mechanisms: making what was decided so.

use std::fmt;

use super::vcpu_threads::VcpuThreads;
use crate::policy::{Cpu, Ns, SchedState, Vcpu};
use host::thread::Class;

/// How vCPU threads are made to run or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MechanismKind {
    /// By their scheduling class.
    Class,
    /// By taking them out of the guest.
    Deschedule,
}

impl fmt::Display for MechanismKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Class => "class",
            Self::Deschedule => "deschedule",
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

    /// What it does it all with.
    fn vcpu_threads(&mut self) -> &mut VcpuThreads;

    /// Makes the vCPU threads do what `state` says. What they do already costs nothing.
    fn settle(&mut self, state: &SchedState);

    /// A vCPU lives on that CPU from now on.
    fn place(&mut self, vcpu: Vcpu, cpu: Cpu) {
        self.vcpu_threads().place(vcpu, cpu);
    }

    /// Asks the host to treat a vCPU in another way, where the host chooses.
    fn tune(&mut self, vcpu: Vcpu, nice: i8, slice: Ns) {
        // To ask for less is always allowed; what is refused stays as it was.
        let _ = self.vcpu_threads().set_class(vcpu, Class::Tuned { nice, slice_ns: slice });
    }

    /// A vCPU is gone, or about to go home.
    fn lose(&mut self, vcpu: Vcpu) {
        self.vcpu_threads().give_back(vcpu);
    }

    /// Gives the vCPU threads back to the host.
    fn release_all(&mut self) {
        self.vcpu_threads().release_all();
    }
}
