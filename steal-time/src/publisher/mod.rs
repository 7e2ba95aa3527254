//! Publication: keeps each vCPU's steal-time record up to date.
//!
//! A publisher observes host context switches and writes one guest record per vCPU. It never
//! decides which vCPU runs, and it never blocks a vCPU thread. The [crate] documentation compares
//! the publishers.
//!
//! All publishers write in KVM's order (`record_steal_time`): version odd, steal, version even,
//! then `preempted`. A reader on another vCPU may read `preempted` late, but never a torn steal.
//!
//! | file | task |
//! |---|---|
//! | `choice.rs` | what the user chooses, what the host allows, and what is used |
//! | `bpf_publisher.rs`, `overlay.rs` | `bpf` and `bpf-classic`, and the pages that their program writes |
//! | `perf/`, `monitor_publisher.rs`, `null.rs` | `perf`; `monitor`; `kernel` and `off` |
//! | `record.rs` | the record, and the order in which it is written |
//! | `thread_record.rs`, `poller.rs` | version and steal, written by the vCPU's thread |
//! | `pages.rs` | guest pages that KVM's dirty log misses |

mod bpf_publisher;
mod choice;
pub(crate) mod kind;
mod monitor_publisher;
mod null;
pub mod overlay;
mod pages;
pub mod perf;
mod poller;
pub mod record;
mod thread_record;

use std::fmt;

use protocol::VcpuId;

use crate::bpf;
pub use crate::bpf::Inits;
use crate::error::StealTimeError;

pub use bpf_publisher::BpfPublisher;
pub use choice::{Loaded, PublisherLoading, Refusal, Selection};
pub use kind::{MsrOwner, PublisherChoice, PublisherKind};
pub use monitor_publisher::MonitorPublisher;
pub use null::NullPublisher;
pub use pages::UnloggedPages;
pub use perf::PerfPublisher;

/// Writes the records of one VM's vCPUs.
pub trait Publisher: fmt::Debug + Send + Sync {
    /// Returns the kind of this publisher.
    fn kind(&self) -> PublisherKind;

    /// Attaches the calling thread as the thread of `vcpu`, until the publication is dropped.
    ///
    /// Returns `None` if the monitor has no part in publication.
    ///
    /// # Errors
    /// [`StealTimeError`] if the host refuses.
    fn attach(&self, vcpu: VcpuId) -> Result<Option<Box<dyn Publication + '_>>, StealTimeError>;

    /// Returns the guest pages (GPA) that were written or may be, and that KVM's dirty log misses;
    /// `None` for all pages.
    fn unlogged_pages(&self) -> Option<Vec<u64>> {
        Some(Vec::new())
    }

    /// Returns the counted switches of `vcpu`, without its thread's help; `None` if this publisher
    /// cannot.
    fn counts_at_rest(&self, _vcpu: VcpuId) -> Option<bpf::SwitchCounts> {
        None
    }

    /// Returns what the publisher cannot observe or do on this host, and the cures, for the user.
    fn limits(&self) -> Vec<String> {
        Vec::new()
    }
}

/// The publication of one vCPU, owned by its thread.
pub trait Publication: fmt::Debug {
    /// Starts to publish into the record at `gpa` (64-byte aligned). Called while no record is
    /// published.
    ///
    /// The record is updated once before this returns; its steal is then at least `least_ns`. A
    /// record outside RAM is ignored.
    ///
    /// # Errors
    /// [`StealTimeError`] if the host refuses. No record is published then.
    fn publish(&mut self, gpa: u64, least_ns: u64) -> Result<(), StealTimeError>;

    /// Stops publishing. On return the record is no longer written.
    fn withdraw(&mut self);

    /// Returns the INITs that may have reset this vCPU, or another VM's, and are not yet judged.
    /// While there are some, no record is written.
    ///
    /// `None` also from a publisher that cannot detect INIT.
    fn unjudged_inits(&mut self) -> Option<Inits> {
        None
    }

    /// Ends the judgement of `inits`. The record that is still published, if any, is updated once
    /// and written again.
    ///
    /// # Errors
    /// [`StealTimeError`] if the host refuses. No record is published then.
    fn set_judged(&mut self, _inits: Inits) -> Result<(), StealTimeError> {
        Ok(())
    }

    /// Marks the vCPU as descheduled by the monitor: sets `preempted` until
    /// [`schedule`](Self::schedule), whatever the thread does meanwhile.
    fn deschedule(&mut self);

    /// Marks the vCPU as scheduled again: updates the record once, and clears `preempted`.
    ///
    /// `descheduled_ns` is the time since [`deschedule`](Self::deschedule) for which the thread
    /// slept. Steal grows by it and by the thread's run delay.
    ///
    /// # Errors
    /// [`StealTimeError`] if the host refuses. No record is published then.
    fn schedule(&mut self, descheduled_ns: u64) -> Result<(), StealTimeError>;

    /// Stops writing the record until [`resume`](Self::resume), whatever the thread does meanwhile.
    fn pause(&mut self);

    /// Discards the thread's run delay since [`pause`](Self::pause): it is not steal.
    ///
    /// `run_delay_ns` is the thread's run delay so far. Returns the discarded time (ns).
    fn discard_run_delay(&mut self, run_delay_ns: u64) -> u64;

    /// Updates the record once, and publishes again.
    ///
    /// # Errors
    /// [`StealTimeError`] if the host refuses. No record is published then.
    fn resume(&mut self) -> Result<(), StealTimeError>;

    /// Clears `preempted`. Called last before the vCPU enters the guest.
    fn before_entry(&mut self);

    /// Returns the counts since this publication began.
    fn counts(&self) -> Counts;
}

/// A limit of publishers that cannot detect INIT.
const INIT_IS_MISSED: &str = "INIT is missed: the record of a vCPU that was reset is still written, until \
                              the guest registers it again (publisher bpf detects INIT)";

/// A publisher's counts for one vCPU, since its thread was attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Context switches.
    #[serde(flatten)]
    pub program: bpf::SwitchCounts,
    /// Entries into the guest that found `preempted` set, and cleared it.
    pub cleared_at_entry: u64,
    /// Context switches whose record was lost.
    pub lost: u64,
    /// Calls of [`Publication::deschedule`].
    pub deschedules: u64,
}

impl Counts {
    /// Returns the difference to `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            program: self.program.since(earlier.program),
            cleared_at_entry: self.cleared_at_entry.saturating_sub(earlier.cleared_at_entry),
            lost: self.lost.saturating_sub(earlier.lost),
            deschedules: self.deschedules.saturating_sub(earlier.deschedules),
        }
    }
}
