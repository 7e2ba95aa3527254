//! The recorder: collects context switches, lock episodes and lock counts during a session.
//!
//! perf logs the context switches of each vCPU thread to a ring of the kernel; guests log long lock
//! episodes to rings in their hint pages. The recorder drains both before they are full, and counts
//! what was lost.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use protocol::payload::hints::EpisodeKind;

use super::hints::ScheduledGuest;
use super::log::push_bounded;
use super::mechanism::MechanismKind;
use crate::guest::ReportView;
use crate::policy::Vcpu;
use host::clock;
use host::perf::{Switch, SwitchLog};
use host::sync;
use host::thread::{Class, set_own_class};
use host::ticker::Ticker;
use vmm::guest_clock::GuestClock;
use vmm::vcpu::control::VcpuHandle;

/// Pages of a thread's perf ring: room for about 10,000 switches.
const RING_PAGES: usize = 64;
/// Maximum number of recorded switches per thread, of episodes, and of samples. What comes later
/// is dropped and counted.
const CAPACITY: usize = 1 << 20;

/// Period of draining perf's rings alone.
const PERF_PERIOD: Duration = Duration::from_millis(200);
/// Period of draining the guests' smaller rings too.
const EPISODE_PERIOD: Duration = Duration::from_millis(2);

/// Class of the recorder beside real-time vCPU threads; otherwise it would not get a CPU.
const REALTIME: Class = Class::Fifo(31);

/// A long wait for a lock, or a long critical section. Timestamps are of `CLOCK_MONOTONIC` (ns).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockEpisode {
    /// The vCPU.
    pub vcpu: Vcpu,
    /// Wait or critical section.
    pub kind: EpisodeKind,
    /// Index of the lock in its guest.
    pub lock: u8,
    /// When it began.
    pub from_ns: u64,
    /// When it ended.
    pub to_ns: u64,
}

/// The rate of lock acquisitions of a guest since the previous sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockSample {
    /// Index of the guest.
    pub guest: usize,
    /// When it was taken (ns, `CLOCK_MONOTONIC`).
    pub at_ns: u64,
    /// Acquisitions per millisecond.
    pub per_ms: u64,
}

/// The records of a session.
#[derive(Debug, Default)]
pub(super) struct Records {
    pub(super) switches: Option<Vec<Vec<Switch>>>,
    pub(super) lost_switches: u64,
    pub(super) episodes: Vec<LockEpisode>,
    pub(super) lost_episodes: u64,
    pub(super) samples: Vec<LockSample>,
}

impl Records {
    /// Adds a context switch of the thread with this index.
    fn add_switch(&mut self, thread: usize, switch: Switch) {
        if let Some(kept) = self.switches.as_mut().and_then(|threads| threads.get_mut(thread)) {
            self.lost_switches += u64::from(!push_bounded(kept, CAPACITY, switch));
        }
    }

    /// Adds an episode. The guest wrote its timestamps: one that ends before it begins is lost.
    fn add_episode(&mut self, episode: LockEpisode) {
        let is_kept = episode.from_ns < episode.to_ns && push_bounded(&mut self.episodes, CAPACITY, episode);
        self.lost_episodes = self.lost_episodes.saturating_add(u64::from(!is_kept));
    }

    /// Adds a sample, which counts as an episode if it is lost.
    fn add_sample(&mut self, sample: LockSample) {
        self.lost_episodes += u64::from(!push_bounded(&mut self.samples, CAPACITY, sample));
    }
}

/// The recorder of a session.
#[derive(Debug)]
pub(super) struct Recorder {
    inner: Arc<Mutex<Inner>>,
    ticker: Ticker,
}

#[derive(Debug)]
struct Inner {
    logs: Vec<SwitchLog>,
    pages: Vec<Page>,
    counters: Vec<Counter>,
    records: Records,
}

/// The episode ring of a vCPU.
#[derive(Debug)]
struct Page {
    vcpu: Vcpu,
    index: usize,
    report: ReportView,
    clock: GuestClock,
    read: u64,
}

/// The lock acquisitions of a guest at the previous sample.
#[derive(Debug)]
struct Counter {
    guest: usize,
    vcpus: usize,
    report: ReportView,
    at_ns: u64,
    total: u64,
}

impl Counter {
    /// Takes a sample.
    fn sample(&mut self) -> LockSample {
        let vcpus = self.report.vcpus.iter().take(self.vcpus);
        let total =
            vcpus.map(|vcpu| vcpu.acquisitions_ever.load(Ordering::Relaxed)).fold(0, u64::wrapping_add);
        let at_ns = clock::monotonic_ns();
        // The guest may write any value.
        let grown = u128::from(total.saturating_sub(self.total)) * 1_000_000;
        let per_ms = grown / u128::from(at_ns.saturating_sub(self.at_ns).max(1));
        (self.at_ns, self.total) = (at_ns, total);
        LockSample { guest: self.guest, at_ns, per_ms: u64::try_from(per_ms).unwrap_or(u64::MAX) }
    }
}

impl Recorder {
    /// Starts to record the context switches of the threads of `handles` and, with `traces`, the
    /// episodes and lock counts of `guests`.
    ///
    /// # Errors
    /// The host cannot create a thread.
    pub(super) fn start(
        handles: &[Arc<VcpuHandle>],
        guests: &[ScheduledGuest],
        traces: bool,
        kind: MechanismKind,
    ) -> io::Result<Self> {
        let log = |handle: &Arc<VcpuHandle>| SwitchLog::of_thread(handle.kick_handle().tid(), RING_PAGES);
        // All threads or none: a partial record would pass for a complete one.
        let logs: Vec<_> = handles.iter().map(log).collect::<Result<_, _>>().unwrap_or_default();
        let (mut pages, mut counters) = (Vec::new(), Vec::new());
        let mut first = 0;
        for (number, guest) in guests.iter().enumerate() {
            let known = guest.report.as_ref().zip(guest.clock).filter(|_| traces);
            if let Some((report, clock)) = known {
                let page =
                    |index| Page { vcpu: first + index, index, report: report.clone(), clock, read: 0 };
                pages.extend((0..guest.handles.len()).map(page));
                let mut counter = Counter {
                    guest: number,
                    vcpus: guest.handles.len(),
                    report: report.clone(),
                    at_ns: 0,
                    total: 0,
                };
                counter.sample();
                counters.push(counter);
            }
            first += guest.handles.len();
        }
        let switches = (!logs.is_empty()).then(|| vec![Vec::new(); logs.len()]);
        let period = if pages.is_empty() { PERF_PERIOD } else { EPISODE_PERIOD };
        let inner = Arc::new(Mutex::new(Inner {
            logs,
            pages,
            counters,
            records: Records { switches, ..Records::default() },
        }));
        let shared = Arc::clone(&inner);
        let begin = move || {
            // It inherited the class of its creator.
            let class = if kind == MechanismKind::Class { REALTIME } else { Class::Fair };
            let _ = set_own_class(class);
        };
        let tick = move || sync::lock(&shared).drain();
        Ok(Self { inner, ticker: Ticker::start("recorder", period, begin, tick)? })
    }

    /// Stops recording, and returns the records.
    pub(super) fn finish(self) -> Records {
        drop(self.ticker);
        let mut inner = sync::lock(&self.inner);
        inner.drain();
        inner.records.lost_switches += inner.logs.iter().map(SwitchLog::lost).sum::<u64>();
        std::mem::take(&mut inner.records)
    }
}

impl Inner {
    fn drain(&mut self) {
        let records = &mut self.records;
        self.counters.iter_mut().for_each(|counter| records.add_sample(counter.sample()));
        for (thread, log) in self.logs.iter().enumerate() {
            log.drain(|switch| records.add_switch(thread, switch));
        }
        for page in &mut self.pages {
            let Some(hints) = page.report.hints.get(page.index) else { continue };
            let (vcpu, clock) = (page.vcpu, page.clock);
            let (next, lost) = hints.episodes.drain(page.read, |episode| {
                // The guest may write any TSC value; the clock saturates.
                let (from_ns, to_ns) =
                    (clock.monotonic_ns_at(episode.from), clock.monotonic_ns_at(episode.to));
                let (kind, lock) = (episode.kind, episode.lock);
                records.add_episode(LockEpisode { vcpu, kind, lock, from_ns, to_ns });
            });
            page.read = next;
            records.lost_episodes = records.lost_episodes.saturating_add(lost);
        }
    }
}

#[cfg(test)]
mod tests {
    use host::perf::SwitchKind;

    use super::*;

    #[test]
    fn full_records_drop_later_entries_and_count_them() {
        const MORE: u64 = 5;
        let mut records = Records { switches: Some(vec![Vec::new()]), ..Records::default() };
        for at_ns in 0..CAPACITY as u64 + MORE {
            records.add_switch(0, Switch { at_ns, kind: SwitchKind::In, cpu: 0 });
            let (kind, to_ns) = (EpisodeKind::Held, at_ns + 1);
            records.add_episode(LockEpisode { vcpu: 0, kind, lock: 0, from_ns: at_ns, to_ns });
            records.add_sample(LockSample { guest: 0, at_ns, per_ms: 1 });
        }
        let kept = records.switches.as_ref().map(|threads| threads[0].len());
        assert_eq!(kept, Some(CAPACITY));
        assert_eq!((records.episodes.len(), records.samples.len()), (CAPACITY, CAPACITY));
        assert_eq!((records.lost_switches, records.lost_episodes), (MORE, 2 * MORE));
    }

    #[test]
    fn episode_that_ends_before_it_begins_is_lost() {
        let mut records = Records::default();
        let episode = LockEpisode { vcpu: 0, kind: EpisodeKind::Held, lock: 0, from_ns: 2, to_ns: 1 };
        records.add_episode(episode);
        assert_eq!((records.episodes.len(), records.lost_episodes), (0, 1));
    }
}
