//! Mechanisms: ways to make vCPU threads follow a schedule.

use std::fmt;

use super::vcpu_threads::VcpuThreads;
use crate::policy::{Cpu, Ns, SchedState, Vcpu};
use host::thread::Class;

/// A mechanism.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MechanismKind {
    /// Changes the scheduling class and priority of vCPU threads.
    Class,
    /// Makes vCPU threads leave the guest and wait.
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

/// The mechanism that the user requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MechanismChoice {
    /// The best one that the host and the publisher allow.
    #[default]
    Auto,
    /// This one only.
    Only(MechanismKind),
}

/// A way to make vCPU threads follow a schedule.
pub(super) trait Mechanism: fmt::Debug + Send {
    /// Returns which mechanism this is.
    fn kind(&self) -> MechanismKind;

    /// Returns the threads that it controls.
    fn vcpu_threads(&mut self) -> &mut VcpuThreads;

    /// Makes the vCPU threads follow `state`. Threads that already do cost no system call.
    fn apply(&mut self, state: &SchedState);

    /// Makes `cpu` the home of `vcpu`.
    fn migrate(&mut self, vcpu: Vcpu, cpu: Cpu) {
        self.vcpu_threads().pin(vcpu, cpu);
    }

    /// Sets the nice value and the slice (ns) of `vcpu` for CPUs that the host schedules.
    fn tune(&mut self, vcpu: Vcpu, nice: i8, slice: Ns) {
        // A higher nice value needs no privilege. After a refusal the thread keeps its class.
        let _ = self.vcpu_threads().set_class(vcpu, Class::Tuned { nice, slice_ns: slice });
    }

    /// Gives the thread of `vcpu`, which has exited or is about to, back to the host's scheduler.
    fn remove(&mut self, vcpu: Vcpu) {
        self.vcpu_threads().release(vcpu);
    }

    /// Gives all vCPU threads back to the host's scheduler.
    fn release_all(&mut self) {
        self.vcpu_threads().release_all();
    }
}
