//! Traces: a run as a timeline, with tracks for CPUs, vCPUs and guests.
//!
//! All events were recorded during the run in bounded buffers that count their losses: decisions of
//! the policy ([`crate::sched::log`]), context switches by perf, descheduled intervals by this
//! monitor, and long lock episodes by the guests. All timestamps are of `CLOCK_MONOTONIC`. This
//! module merges them after the run; [`perfetto`] encodes the result.
//!
//! | track | events |
//! |---|---|
//! | a CPU | the vCPU that ran |
//! | its plan | the assigned vCPU; an instant for each decision |
//! | a vCPU | running, preempted, descheduled, blocked; instants for preemptions and kicks |
//! | its `preempted` | set |
//! | its locks | waits and critical sections of 10 us and more |
//! | counters | steal and lock acquisitions in a millisecond, of each guest |

mod build;
pub mod perfetto;

pub use build::of;

use crate::policy::Ns;

/// A track, or a group of tracks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Track {
    /// Its name.
    pub name: String,
    /// Its group, as an index into [`Trace::tracks`].
    pub parent: Option<usize>,
    /// Unit of a counter track; `None` for other tracks.
    pub unit: Option<&'static str>,
}

/// An event on a track.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Timestamp (ns, `CLOCK_MONOTONIC`).
    pub at: Ns,
    /// Its track, as an index into [`Trace::tracks`].
    pub track: usize,
    /// Kind and payload.
    pub what: What,
}

/// Kind of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// The current slice ends. It precedes a slice that begins at the same time.
    End,
    /// A slice with this label begins.
    Begin(String),
    /// An instant with this label.
    Instant(&'static str),
    /// A new value of the counter.
    Count(i64),
}

/// The timeline of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// All tracks.
    pub tracks: Vec<Track>,
    /// All events, by timestamp.
    pub events: Vec<Event>,
    /// Number of events that full buffers dropped during the run.
    pub lost: u64,
}

/// Label of the instant at which a policy preempts or throttles a vCPU.
pub const PREEMPTION: &str = "preempted by policy";

impl Trace {
    fn track(&mut self, parent: Option<usize>, name: String) -> usize {
        self.tracks.push(Track { name, parent, unit: None });
        self.tracks.len() - 1
    }

    fn counter(&mut self, parent: usize, name: &str, unit: &'static str) -> usize {
        self.tracks.push(Track { name: name.to_owned(), parent: Some(parent), unit: Some(unit) });
        self.tracks.len() - 1
    }

    fn slice(&mut self, track: usize, name: impl Into<String>, from: Ns, to: Ns) {
        if from < to {
            self.events.push(Event { at: from, track, what: What::Begin(name.into()) });
            self.events.push(Event { at: to, track, what: What::End });
        }
    }

    fn instant(&mut self, track: usize, name: &'static str, at: Ns) {
        self.events.push(Event { at, track, what: What::Instant(name) });
    }

    fn count(&mut self, track: usize, at: Ns, value: u64) {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        self.events.push(Event { at, track, what: What::Count(value) });
    }
}
