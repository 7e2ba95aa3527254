//! Switch records: the kernel's own log of when a thread got and lost its CPU.
//!
//! For a thread that has asked for it, perf notes each switch in a ring of memory that is shared with us: when, and
//! whether the thread lost its CPU or gave it up. It takes no BPF, no tracepoint, and where `perf_event_paranoid` is 2 or
//! less no right at all. It is on an independent path: what a BPF program on `sched_switch` misses, this finds.
//!
//! The ring is of fixed size. What finds no room in it is lost, and the log says so ([`SwitchLog::lost`]): whoever counts
//! by it must ask.
//!
//! Source: `perf_event_open(2)`; Linux `kernel/events/core.c`, `perf_event_switch_output`.

mod cpu_clock;
mod ring;
mod sys;
mod tracepoint;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use libc::pid_t;

pub use cpu_clock::CpuClock;
use ring::Ring;
pub use tracepoint::run_at_tracepoint;

/// Switches cannot be logged.
#[derive(Debug, thiserror::Error)]
pub enum PerfError {
    /// The host does not allow it.
    #[error(
        "Cannot have the switches of a thread recorded: kernel.perf_event_paranoid is {paranoid} (set it to 2, or grant \
         CAP_PERFMON, or try --publisher park)"
    )]
    NotPermitted {
        /// What it is, or `unknown`.
        paranoid: String,
        /// The host's reason.
        source: io::Error,
    },
    /// No more memory may be locked for rings.
    #[error(
        "Cannot map a ring for switch records: no more memory may be locked (raise kernel.perf_event_mlock_kb or ulimit \
         -l, or try --publisher park)"
    )]
    NoRoom(#[source] io::Error),
    /// The kernel has no perf events, or refuses for another reason.
    #[error(
        "Cannot have the switches of a thread recorded (it takes CONFIG_PERF_EVENTS; try --publisher park)"
    )]
    Refused(#[source] io::Error),
}

/// What happened to a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SwitchKind {
    /// It got a CPU.
    In,
    /// It lost its CPU although it wanted to run.
    Preempted,
    /// It gave its CPU up.
    Slept,
}

/// A switch of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch {
    /// When (ns of the monotonic clock).
    pub at_ns: u64,
    /// What happened.
    pub kind: SwitchKind,
    /// On which CPU.
    pub cpu: u32,
}

/// The switches of one thread, from the moment that the log was opened on.
#[derive(Debug)]
pub struct SwitchLog {
    ring: Ring,
    event: OwnedFd,
}

impl SwitchLog {
    /// Logs the switches of thread `tid` of this process, in a ring of `pages` pages: a power of two. A page holds 170
    /// switches. Whoever polls the descriptor is woken by each.
    ///
    /// # Errors
    /// [`PerfError`].
    pub fn of_thread(tid: pid_t, pages: usize) -> Result<Self, PerfError> {
        let event = sys::open(tid).map_err(|source| match source.raw_os_error() {
            Some(libc::EACCES | libc::EPERM) => PerfError::NotPermitted { paranoid: paranoid(), source },
            _ => PerfError::Refused(source),
        })?;
        let ring = Ring::map(&event, pages).map_err(|source| match source.raw_os_error() {
            Some(libc::EPERM | libc::ENOMEM) => PerfError::NoRoom(source),
            _ => PerfError::Refused(source),
        })?;
        Ok(Self { ring, event })
    }

    /// Grows with each record, read or not: where it has not grown, nothing has happened. One load, by any thread.
    pub fn written(&self) -> u64 {
        self.ring.written()
    }

    /// How much of that was read.
    pub fn read(&self) -> u64 {
        self.ring.read()
    }

    /// Has `signal` sent to the calling thread with each record.
    ///
    /// # Errors
    /// [`PerfError::Refused`].
    pub fn signal_this_thread(&self, signal: libc::c_int) -> Result<(), PerfError> {
        sys::signal_this_thread(&self.event, signal).map_err(PerfError::Refused)
    }

    /// Hands over what has been recorded and not been read, in order. One thread reads a log.
    pub fn drain(&self, each: impl FnMut(Switch)) {
        self.ring.drain(each);
    }

    /// How many records found no room.
    ///
    /// The kernel notes a loss in the ring itself, but only with the next record that finds room; since Linux 6.0 the event
    /// counts them, too. The larger number is given.
    pub fn lost(&self) -> u64 {
        self.ring.lost().max(sys::lost(&self.event).unwrap_or(0))
    }
}

impl AsRawFd for SwitchLog {
    fn as_raw_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}

fn paranoid() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/perf_event_paranoid");
    text.map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::account::ThreadAccount;
    use crate::thread::own_tid;

    /// `None`, said aloud, where the host does not allow it.
    fn log(pages: usize) -> Option<SwitchLog> {
        SwitchLog::of_thread(own_tid(), pages).inspect_err(|error| eprintln!("SKIPPED: {error}")).ok()
    }

    #[test]
    fn switches_of_a_thread_are_those_that_the_scheduler_counts() {
        let Some(log) = log(16) else { return };
        let tid = own_tid();
        let before = ThreadAccount::read(tid).unwrap();
        let mut switches = Vec::new();
        log.drain(|_| {});
        for _ in 0..50 {
            std::thread::sleep(Duration::from_micros(200));
        }
        log.drain(|switch| switches.push(switch));
        let grown = ThreadAccount::read(tid).unwrap().since(before);
        let count = |kind| switches.iter().filter(|switch| switch.kind == kind).count() as u64;
        assert!(count(SwitchKind::Slept) >= 50);
        // Between the readings and the drainings the host may have taken the CPU once more.
        let near = |counted: u64, grown: u64| counted.abs_diff(grown) <= 2;
        assert!(near(count(SwitchKind::Slept), grown.voluntary_switches), "{grown:?}");
        assert!(near(count(SwitchKind::Preempted), grown.involuntary_switches), "{grown:?}");
        assert!(switches.is_sorted_by_key(|switch| switch.at_ns));
        assert_eq!(log.lost(), 0);
    }

    #[test]
    fn ring_that_is_full_says_what_it_has_lost() {
        let Some(log) = log(1) else { return };
        for _ in 0..300 {
            std::thread::sleep(Duration::from_micros(1));
        }
        let mut seen = 0;
        log.drain(|_| seen += 1);
        assert!(seen < 600);
        assert!(log.lost() > 0, "{seen} switches of 600 were kept");
    }
}
