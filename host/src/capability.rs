//! Capabilities: the rights of this process that the publishers and policies need.
//!
//! Source: capabilities(7).

use std::fmt;

use rustix::thread::{CapabilitySet, capabilities, capability_is_in_bounding_set, no_new_privs};

/// A capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// `CAP_BPF`: loads BPF programs.
    Bpf,
    /// `CAP_PERFMON`: attaches them to tracepoints.
    Perfmon,
    /// `CAP_SYS_NICE`: uses real-time classes.
    SysNice,
}

impl Capability {
    /// All capabilities that the project uses.
    pub const ALL: [Self; 3] = [Self::Bpf, Self::Perfmon, Self::SysNice];

    /// Returns the name without `CAP_`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bpf => "BPF",
            Self::Perfmon => "PERFMON",
            Self::SysNice => "SYS_NICE",
        }
    }

    fn set(self) -> CapabilitySet {
        match self {
            Self::Bpf => CapabilitySet::BPF,
            Self::Perfmon => CapabilitySet::PERFMON,
            Self::SysNice => CapabilitySet::SYS_NICE,
        }
    }

    /// Whether `CAP_SYS_ADMIN` includes it.
    fn is_of_the_administrator(self) -> bool {
        self != Self::SysNice
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CAP_{}", self.name())
    }
}

/// What a process may do, and how it may gain more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rights {
    /// Capabilities that are not in effect.
    pub missing: Vec<Capability>,
    /// Capabilities that no program of this process can gain: its container or service withholds
    /// them.
    pub withheld: Vec<Capability>,
    /// Whether programs gain no rights from their files, as setcap(8) gives them.
    pub no_new_privs: bool,
}

impl Rights {
    /// Returns the rights of this process. A right that the kernel does not report counts as held.
    pub fn of_this_process() -> Self {
        let effective = capabilities(None).map_or(CapabilitySet::all(), |sets| sets.effective);
        let is_missing = |capability: &Capability| {
            let by_administrator =
                capability.is_of_the_administrator() && effective.contains(CapabilitySet::SYS_ADMIN);
            !by_administrator && !effective.contains(capability.set())
        };
        let is_withheld =
            |capability: &Capability| !capability_is_in_bounding_set(capability.set()).unwrap_or(true);
        let all = || Capability::ALL.into_iter();
        Self {
            missing: all().filter(is_missing).collect(),
            withheld: all().filter(is_withheld).collect(),
            no_new_privs: no_new_privs().unwrap_or(false),
        }
    }
}
