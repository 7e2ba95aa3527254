//! The kinds of publishers, the choice among them, and the owner of the MSR under each.

use std::fmt;

/// The kind of a publisher: which component writes the records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PublisherKind {
    /// A BPF program at `sched_switch`.
    Bpf,
    /// A BPF program for kernels without BTF. It publishes `preempted` alone.
    BpfClassic,
    /// perf's records of context switches, read by an observer thread.
    Perf,
    /// The monitor. It publishes only what it does itself.
    Monitor,
    /// KVM itself, as under any other monitor.
    Kernel,
    /// No component. CPUID lacks the feature.
    Off,
}

impl PublisherKind {
    /// All kinds, the most accurate first.
    pub const ALL: [Self; 6] =
        [Self::Bpf, Self::BpfClassic, Self::Perf, Self::Monitor, Self::Kernel, Self::Off];

    /// Returns the owner of the MSR under this publisher.
    pub fn msr_owner(self) -> MsrOwner {
        match self {
            Self::Bpf | Self::BpfClassic | Self::Perf | Self::Monitor => MsrOwner::Monitor,
            Self::Kernel => MsrOwner::Kernel,
            Self::Off => MsrOwner::Absent,
        }
    }
}

impl fmt::Display for PublisherKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Bpf => "bpf",
            Self::BpfClassic => "bpf-classic",
            Self::Perf => "perf",
            Self::Monitor => "monitor",
            Self::Kernel => "kernel",
            Self::Off => "off",
        })
    }
}

/// The owner of the steal-time MSR: it completes the guest's accesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsrOwner {
    /// This library, in the monitor ([`VcpuStealTime`](crate::VcpuStealTime)).
    Monitor,
    /// KVM itself, as under any other monitor.
    Kernel,
    /// None: the MSR does not exist, and every access faults.
    Absent,
}

/// The user's choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PublisherChoice {
    /// The most accurate publisher that the host allows.
    #[default]
    Auto,
    /// This publisher, or an error.
    Only(PublisherKind),
}

impl fmt::Display for PublisherChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.pad("auto"),
            Self::Only(kind) => kind.fmt(f),
        }
    }
}
