//! Publication: telling the guest that a vCPU is not running.
//!
//! A publisher learns of host context switches and keeps one guest record true for each vCPU. It never decides who
//! runs, and it never blocks the vCPU thread.
//!
//! | publisher | who writes the record | what it needs |
//! |---|---|---|
//! | `bpf` | a BPF program in the context switch itself | `CAP_BPF` and `CAP_PERFMON`, kernel BTF, Linux 6.9 |
//! | `bpf-classic` | the byte: a BPF program in the context switch; version and steal: the vCPU's thread | `CAP_BPF` and `CAP_PERFMON`, tracefs, Linux 5.12 |
//! | `perf` | version and steal: the vCPU's thread; the byte: an observer thread that perf tells of switches | Linux with perf events, and `perf_event_paranoid` at most 2 or `CAP_PERFMON` |
//! | `monitor` | the vCPU's thread, and only of what this monitor does itself | nothing but KVM |
//! | `kernel` | KVM, as on any other monitor: the thing to compare with | KVM's own steal time |
//! | `off` | nobody; CPUID does not show the feature | nothing |
//!
//! Order that every publisher keeps (KVM, `record_steal_time`): version odd, steal, version even, then the byte. A
//! reader on another vCPU may see the byte late, never a torn steal.

mod bpf_publisher;
mod choice;
mod monitor_publisher;
pub mod overlay;
mod pages;
pub mod perf;
mod poller;
pub mod record;
mod thread_record;

use std::fmt;

use protocol::VcpuId;

use host::perf::PerfError;

use crate::bpf;

pub use bpf_publisher::BpfPublisher;
pub use choice::{Loaded, PublisherChoice, PublisherLoading, Selection};
pub use monitor_publisher::MonitorPublisher;
pub use pages::UnloggedPages;
pub use perf::PerfPublisher;

/// Who keeps the records true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PublisherKind {
    /// A BPF program on `sched_switch`.
    Bpf,
    /// A simpler one, for kernels that do not describe their types: the byte alone.
    BpfClassic,
    /// perf's log of switches, read by an observer thread.
    Perf,
    /// The monitor, of its own doing.
    Monitor,
    /// KVM itself.
    Kernel,
    /// Nobody.
    Off,
}

impl PublisherKind {
    /// All of them, the best first.
    pub const ALL: [Self; 6] =
        [Self::Bpf, Self::BpfClassic, Self::Perf, Self::Monitor, Self::Kernel, Self::Off];

    /// Who answers a guest's access to the MSR.
    pub fn msr_owner(self) -> MsrOwner {
        match self {
            Self::Bpf | Self::BpfClassic | Self::Perf | Self::Monitor => MsrOwner::Monitor,
            Self::Kernel => MsrOwner::Kernel,
            Self::Off => MsrOwner::Nobody,
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

/// Who answers a guest's access to the steal-time MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsrOwner {
    /// We do, with KVM's help: [`crate::msr`].
    Monitor,
    /// KVM does.
    Kernel,
    /// It does not exist; every access faults.
    Nobody,
}

/// Publication failed.
#[derive(Debug, thiserror::Error)]
pub enum StealTimeError {
    /// The BPF program cannot be loaded or a thread not attached.
    #[error(transparent)]
    Bpf(#[from] bpf::BpfError),
    /// perf cannot record the switches of a thread, or its observer cannot start.
    #[error("Cannot publish by perf (try --publisher monitor)")]
    Perf(#[from] PerfError),
    /// The monitor lends no signal that makes a vCPU thread leave the guest.
    #[error("Publisher {0} needs a kick signal, and this monitor lends none (see HostVm::kick_signal)")]
    NoKickSignal(PublisherKind),
    /// A publisher that wraps another one cannot be had.
    #[error(transparent)]
    Wrapper(Box<dyn std::error::Error + Send + Sync>),
    /// A record's page cannot be laid over.
    #[error(transparent)]
    Overlay(#[from] overlay::OverlayError),
    /// The thread's own run delay cannot be read.
    #[error("Cannot read the vCPU thread's run delay from /proc/thread-self/schedstat (is /proc mounted?)")]
    RunDelay(#[source] std::io::Error),
    /// KVM lacks a capability of the MSR filter.
    #[error(
        "KVM here cannot hand MSR accesses to userspace: {0} is missing (Linux 5.10 or newer, or try --publisher kernel)"
    )]
    MsrFilterMissing(&'static str),
    /// KVM refuses the MSR filter.
    #[error("Cannot set KVM's MSR filter")]
    MsrFilter(#[source] kvm_ioctls::Error),
    /// KVM refuses a saved MSR value.
    #[error("KVM refuses {msr:#x} for the steal-time MSR of vCPU {vcpu}")]
    Restore {
        /// The vCPU.
        vcpu: VcpuId,
        /// The saved value.
        msr: u64,
    },
    /// KVM has no steal time of its own.
    #[error(
        "KVM here offers no steal time of its own (its CPUID lacks feature bit 5; try --publisher bpf or off)"
    )]
    KernelLacksStealTime,
}

/// What writes records for the vCPUs of one VM.
pub trait Publisher: fmt::Debug + Send + Sync {
    /// Which one this is.
    fn kind(&self) -> PublisherKind;

    /// Takes the calling thread for the thread of `vcpu`, until the publication is dropped.
    ///
    /// `None` when the monitor has no part in publication.
    ///
    /// # Errors
    /// The host's refusal.
    fn attach(&self, vcpu: VcpuId) -> Result<Option<Box<dyn Publication + '_>>, StealTimeError>;

    /// Guest pages (GPA) that may have been written without KVM's dirty log telling of it: for a snapshot they are dirty.
    fn unlogged_pages(&self) -> Vec<u64> {
        Vec::new()
    }

    /// The switches counted for `vcpu`, by those for whom its thread need not be awake; `None` where nobody counts so.
    fn counts_at_rest(&self, _vcpu: VcpuId) -> Option<bpf::SwitchCounts> {
        None
    }

    /// What it cannot see or do on this host, and how that could be had.
    fn limits(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Publication for one vCPU, from its own thread.
pub trait Publication: fmt::Debug {
    /// Publishes into the record at `gpa` (64-byte aligned) from now on; nothing is published yet.
    ///
    /// The record has been updated once when this returns, and its steal is `least_ns` at least. Outside RAM it does
    /// nothing, in silence.
    ///
    /// # Errors
    /// The host's refusal; nothing is published then.
    fn publish(&mut self, gpa: u64, least_ns: u64) -> Result<(), StealTimeError>;

    /// Stops publishing. When this returns the record is not written again.
    fn withdraw(&mut self);

    /// Whether the vCPU was sent INIT since this was last asked. Nothing is published then.
    fn take_init(&mut self) -> bool;

    /// The vCPU is kept from running, whatever its thread does: the byte says so from now on, until
    /// [`unpark`](Self::unpark).
    fn park(&mut self);

    /// The vCPU may run again: it was kept from it for `parked_ns` until its thread was woken, which is steal, as is what
    /// the thread has waited for a CPU since. The record has been updated once when this returns.
    ///
    /// # Errors
    /// The host's refusal; nothing is published then.
    fn unpark(&mut self, parked_ns: u64) -> Result<(), StealTimeError>;

    /// The guest is paused: nothing is written until [`rise`](Self::resume), whatever becomes of the thread.
    fn pause(&mut self);

    /// What of the thread's run delay, `run_delay_ns` all told by now, has not been published since
    /// [`rest`](Self::pause) is not the guest's: it is forgotten. Gives how much it was (ns).
    fn discard_run_delay(&mut self, run_delay_ns: u64) -> u64;

    /// The guest goes on: the record is updated once, and published from now on.
    ///
    /// # Errors
    /// The host's refusal; nothing is published then.
    fn resume(&mut self) -> Result<(), StealTimeError>;

    /// The guest is about to be entered: a byte that says preempted is false.
    fn before_entry(&mut self);

    /// What was counted since this publication began.
    fn counts(&self) -> Counts;
}

/// A limit of those that are not told of INIT.
const INIT_GOES_UNNOTICED: &str = "INIT goes unnoticed: the record of a vCPU that is reset is written on until the guest \
                                   registers it anew (where guests reset vCPUs, use --publisher bpf)";

/// What a publisher counts for a vCPU, from 0 when its thread was attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// By the program, in the context switch.
    #[serde(flatten)]
    pub program: bpf::SwitchCounts,
    /// Times it was about to enter the guest with the byte set.
    pub cleared_at_entry: u64,
    /// Switches whose record was lost.
    pub lost: u64,
    /// Times that the monitor kept it from running.
    pub parks: u64,
}

impl Counts {
    /// What was added since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            program: self.program.since(earlier.program),
            cleared_at_entry: self.cleared_at_entry.saturating_sub(earlier.cleared_at_entry),
            lost: self.lost.saturating_sub(earlier.lost),
            parks: self.parks.saturating_sub(earlier.parks),
        }
    }
}

/// The publisher that does nothing of its own: KVM publishes, or nobody.
#[derive(Clone, Copy, Debug)]
pub struct NullPublisher(pub PublisherKind);

impl Publisher for NullPublisher {
    fn kind(&self) -> PublisherKind {
        self.0
    }

    fn attach(&self, _vcpu: VcpuId) -> Result<Option<Box<dyn Publication + '_>>, StealTimeError> {
        Ok(None)
    }
}
