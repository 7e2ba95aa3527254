//! The clerk: gathers what has happened, beside those who make it happen.
//!
//! perf logs each switch of each vCPU thread in a ring of the kernel's, and the guests note what took long in rings of theirs.
//! The clerk empties both before they are full; what found no room is counted.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use protocol::payload::hints::EpisodeKind;

use super::ScheduledGuest;
use super::mechanism::MechanismKind;
use crate::guest::ReportView;
use crate::policy::Vcpu;
use host::clock;
use host::perf::{Switch, SwitchLog};
use host::thread::{Class, set_own_class};
use host::ticker::Ticker;
use vmm::guest_clock::GuestClock;
use vmm::vcpu::control::VcpuHandle;

/// Pages of a thread's ring: some 10,000 switches.
const PAGES: usize = 64;
/// As many switches of a thread are kept, and as many episodes of all.
const MOST: usize = 1 << 20;

/// How often the rings are emptied: the guest's hold less.
const SELDOM: Duration = Duration::from_millis(200);
const OFTEN: Duration = Duration::from_millis(2);

/// Among vCPU threads of a real-time class it would not get a CPU.
const AMONG_CLASSES: Class = Class::Fifo(31);

/// A wait or a section that took long, on the host's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockEpisode {
    /// Whose.
    pub vcpu: Vcpu,
    /// Which of the two.
    pub kind: EpisodeKind,
    /// When it began (ns of the monotonic clock).
    pub from_ns: u64,
    /// When it was over.
    pub to_ns: u64,
}

/// How many locks a guest took in a millisecond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Which guest.
    pub guest: usize,
    /// When that was found (ns of the monotonic clock).
    pub at_ns: u64,
    /// How many.
    pub in_a_ms: u64,
}

/// What was gathered.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) switches: Option<Vec<Vec<Switch>>>,
    pub(super) lost_switches: u64,
    pub(super) episodes: Vec<LockEpisode>,
    pub(super) lost_episodes: u64,
    pub(super) samples: Vec<Sample>,
}

/// See the module.
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
    facts: Facts,
}

/// Where a vCPU notes what took long.
#[derive(Debug)]
struct Page {
    vcpu: Vcpu,
    index: usize,
    report: ReportView,
    clock: GuestClock,
    read: u64,
}

/// A guest's acquisitions, at the last look.
#[derive(Debug)]
struct Counter {
    guest: usize,
    vcpus: usize,
    report: ReportView,
    at_ns: u64,
    total: u64,
}

impl Counter {
    /// How many there were since the last look, in a millisecond.
    fn sample(&mut self) -> Sample {
        let vcpus = self.report.vcpus.iter().take(self.vcpus);
        let total =
            vcpus.map(|vcpu| vcpu.acquisitions_ever.load(Ordering::Relaxed)).fold(0, u64::wrapping_add);
        let at_ns = clock::monotonic_ns();
        // A guest may write any number there.
        let grown = u128::from(total.saturating_sub(self.total)) * 1_000_000;
        let in_a_ms = grown / u128::from(at_ns.saturating_sub(self.at_ns).max(1));
        (self.at_ns, self.total) = (at_ns, total);
        Sample { guest: self.guest, at_ns, in_a_ms: u64::try_from(in_a_ms).unwrap_or(u64::MAX) }
    }
}

impl Recorder {
    /// Begins to gather what becomes of the threads at `handles`, and, with `traces`, what the guests note.
    pub(super) fn start(
        handles: &[Arc<VcpuHandle>],
        guests: &[ScheduledGuest],
        traces: bool,
        kind: MechanismKind,
    ) -> io::Result<Self> {
        let log = |handle: &Arc<VcpuHandle>| SwitchLog::of_thread(handle.kick_handle().tid(), PAGES);
        // All or none: half of the truth would be taken for all of it.
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
        let period = if pages.is_empty() { SELDOM } else { OFTEN };
        let inner = Arc::new(Mutex::new(Inner {
            logs,
            pages,
            counters,
            facts: Facts { switches, ..Facts::default() },
        }));
        let own = Arc::clone(&inner);
        let begin = move || {
            // Whoever starts it may be of another class, and it would inherit that.
            let own = if kind == MechanismKind::Class { AMONG_CLASSES } else { Class::Fair };
            let _ = set_own_class(own);
        };
        let tick = move || own.lock().unwrap_or_else(PoisonError::into_inner).gather();
        Ok(Self { inner, ticker: Ticker::start("recorder", period, begin, tick)? })
    }

    /// Ends it, and gives what was gathered.
    pub(super) fn finish(self) -> Facts {
        drop(self.ticker);
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.gather();
        inner.facts.lost_switches += inner.logs.iter().map(SwitchLog::lost).sum::<u64>();
        std::mem::take(&mut inner.facts)
    }
}

impl Inner {
    fn gather(&mut self) {
        let Facts { switches, lost_switches, episodes, lost_episodes, samples } = &mut self.facts;
        if samples.len() < MOST {
            samples.extend(self.counters.iter_mut().map(Counter::sample));
        }
        for (log, kept) in self.logs.iter().zip(switches.iter_mut().flatten()) {
            log.drain(|switch| {
                if kept.len() < MOST {
                    kept.push(switch);
                } else {
                    *lost_switches += 1;
                }
            });
        }
        for page in &mut self.pages {
            let Some(hints) = page.report.hints.get(page.index) else { continue };
            let (vcpu, clock) = (page.vcpu, page.clock);
            let (next, lost) = hints.episodes.drain(page.read, |episode| {
                // A guest may write any moment there; one before or far behind is put where it can be.
                let moment = |tsc| clock.monotonic_ns_at(tsc);
                let (from_ns, to_ns) = (moment(episode.from), moment(episode.to));
                if episodes.len() < MOST && from_ns < to_ns {
                    episodes.push(LockEpisode { vcpu, kind: episode.kind, from_ns, to_ns });
                }
            });
            page.read = next;
            *lost_episodes = lost_episodes.saturating_add(lost);
        }
    }
}
