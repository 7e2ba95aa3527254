//! Context switches of a thread, recorded by perf.
//!
//! perf writes a record of each switch of a thread into a ring buffer that is shared with this
//! process: the time, the CPU, and whether the thread was preempted or blocked. It needs neither
//! BPF nor a tracepoint, and no privilege if `kernel.perf_event_paranoid` is 2 or less. perf hooks
//! the context switch by itself, so its records are independent of tracepoints such as
//! `sched_switch`.
//!
//! The ring has a fixed size, and a record that finds no room is lost. Code that counts switches
//! must check [`SwitchLog::lost`].
//!
//! Source: `perf_event_open(2)`; Linux `kernel/events/core.c`, `perf_event_switch_output`.

mod cpu_clock;
mod ring;
mod sys;
mod tracepoint;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use libc::pid_t;

use crate::clock::KernelClock;
pub use cpu_clock::CpuClock;
use ring::Ring;
pub use tracepoint::attach_to_tracepoint;

/// perf cannot record switches, or cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum PerfError {
    /// `kernel.perf_event_paranoid`, or what contains this process, forbids it.
    #[error(
        "Cannot record the context switches of a thread: {}, or grant CAP_PERFMON)",
        forbidden_by(paranoid)
    )]
    NotPermitted {
        /// The value of `kernel.perf_event_paranoid`, or `unknown`.
        paranoid: String,
        /// `EACCES` or `EPERM`.
        source: io::Error,
    },
    /// This user may not lock more memory for ring buffers.
    #[error(
        "Cannot map a ring buffer for switch records: the limit of locked memory is reached (raise \
         kernel.perf_event_mlock_kb or `ulimit -l`)"
    )]
    LockedMemory(#[source] io::Error),
    /// The kernel has no perf events, or none of this kind.
    #[error(
        "Cannot record the context switches of a thread: it needs a kernel built with CONFIG_PERF_EVENTS"
    )]
    NoPerfEvents(#[source] io::Error),
    /// Another call failed.
    #[error("Cannot {what}")]
    Failed {
        /// What was tried.
        what: &'static str,
        /// The error of the call.
        source: io::Error,
    },
}

/// Returns what forbids perf events, and the cure.
fn forbidden_by(paranoid: &str) -> String {
    match paranoid.parse::<i32>() {
        Ok(..=2) => "this process may not use perf_event_open(2), as in a container whose seccomp profile \
                     lacks it (allow it there"
            .to_owned(),
        _ => format!("kernel.perf_event_paranoid is {paranoid} (set it to 2"),
    }
}

impl PerfError {
    /// The event could not be opened, where `kernel.perf_event_paranoid` is `paranoid`.
    fn of_open(source: io::Error, paranoid: impl FnOnce() -> String) -> Self {
        match source.raw_os_error() {
            Some(libc::EACCES | libc::EPERM) => Self::NotPermitted { paranoid: paranoid(), source },
            Some(
                libc::ENOSYS | libc::ENOENT | libc::ENODEV | libc::EOPNOTSUPP | libc::EINVAL | libc::E2BIG,
            ) => Self::NoPerfEvents(source),
            _ => Self::Failed { what: "record the context switches of a thread", source },
        }
    }

    /// The ring could not be mapped. `EPERM` is the limit; memory that is short is `ENOMEM`.
    fn of_ring(source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::EPERM) => Self::LockedMemory(source),
            _ => Self::Failed { what: "map a ring buffer for switch records", source },
        }
    }
}

/// The kind of a context switch, as its thread sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SwitchKind {
    /// The thread was switched in.
    In,
    /// The thread was switched out while runnable.
    Preempted,
    /// The thread was switched out to sleep.
    Blocked,
}

/// One context switch of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch {
    /// Its time (ns of this process's monotonic clock, see [`clock`](crate::clock)).
    pub at_ns: u64,
    /// Switched in, preempted, or blocked.
    pub kind: SwitchKind,
    /// The number of the CPU.
    pub cpu: u32,
}

/// A log of one thread's context switches, from the moment of its creation.
///
/// Its descriptor polls readable after each record.
#[derive(Debug)]
pub struct SwitchLog {
    ring: Ring,
    event: OwnedFd,
    /// The clock of the records.
    clock: KernelClock,
}

impl SwitchLog {
    /// Starts to log the switches of thread `tid` of this process, in a ring of `pages` pages (a
    /// power of two).
    ///
    /// A page holds 170 switches.
    ///
    /// # Errors
    /// [`PerfError`] if the host does not allow it or lacks perf events, if locked memory is used
    /// up, or if perf's clock cannot be compared with that of this process.
    pub fn of_thread(tid: pid_t, pages: usize) -> Result<Self, PerfError> {
        let clock = KernelClock::of_this_process().map_err(|source| PerfError::Failed {
            what: "compare perf's clock with that of this process (it needs /proc, and the time namespace of \
                   its children: start it by `unshare --time --fork`)",
            source,
        })?;
        let event = sys::open_switches(tid).map_err(|source| PerfError::of_open(source, paranoid))?;
        let ring = Ring::map(&event, pages).map_err(PerfError::of_ring)?;
        Ok(Self { ring, event, clock })
    }

    /// Returns the number of bytes that the kernel has written. It grows with each record; any
    /// thread may load it.
    pub fn head(&self) -> u64 {
        self.ring.head()
    }

    /// Returns the number of bytes that [`drain`](Self::drain) has consumed.
    pub fn tail(&self) -> u64 {
        self.ring.tail()
    }

    /// Makes the kernel send `signal` to the calling thread with each record.
    ///
    /// # Errors
    /// [`PerfError::Failed`] if fcntl(2) fails.
    pub fn signal_this_thread(&self, signal: libc::c_int) -> Result<(), PerfError> {
        let what = "send a signal with each switch record";
        sys::signal_this_thread(&self.event, signal).map_err(|source| PerfError::Failed { what, source })
    }

    /// Consumes the records written so far, and calls `each` for each switch in order of time.
    ///
    /// Only one thread at a time may drain a log.
    pub fn drain(&self, mut each: impl FnMut(Switch)) {
        let own = |at_ns| self.clock.to_monotonic_ns(at_ns);
        self.ring.drain(|switch| each(Switch { at_ns: own(switch.at_ns), ..switch }));
    }

    /// Returns the number of records that found no room.
    ///
    /// The kernel records a loss in the ring, but only together with the next record that fits.
    /// Since Linux 6.0 the event counts losses, too. The result is the larger of both numbers.
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
    use crate::clock;
    use crate::stats::ThreadStats;
    use crate::thread::own_tid;

    #[test]
    fn refusal_is_explained_by_its_error_number() {
        let io = io::Error::from_raw_os_error;
        let open = |errno, paranoid: &str| {
            crate::error_chain::one_line(&PerfError::of_open(io(errno), || paranoid.to_owned()))
        };
        for (errno, paranoid, expected) in [
            (libc::EACCES, "3", "kernel.perf_event_paranoid is 3 (set it to 2, or grant CAP_PERFMON)"),
            (libc::EPERM, "unknown", "kernel.perf_event_paranoid is unknown"),
            (libc::EPERM, "2", "seccomp"),
            (libc::EPERM, "-1", "seccomp"),
            (libc::ENOSYS, "2", "CONFIG_PERF_EVENTS"),
            (libc::ENOENT, "2", "CONFIG_PERF_EVENTS"),
            (libc::EMFILE, "2", "ulimit -n"),
            (libc::ENFILE, "2", "fs.file-max"),
            (libc::ENOMEM, "2", "cgroup"),
            (libc::ESRCH, "2", "No such process"),
        ] {
            let line = open(errno, paranoid);
            assert!(line.contains(expected), "{errno}: {line}");
            assert_eq!(line.contains("CONFIG_PERF_EVENTS"), expected == "CONFIG_PERF_EVENTS", "{line}");
            assert_eq!(line.contains("CAP_PERFMON"), matches!(errno, libc::EPERM | libc::EACCES), "{line}");
        }
        let ring = |errno| crate::error_chain::one_line(&PerfError::of_ring(io(errno)));
        assert!(ring(libc::EPERM).contains("ulimit -l"));
        assert!(ring(libc::ENOMEM).contains("cgroup") && !ring(libc::ENOMEM).contains("ulimit -l"));
        assert!(ring(libc::EMFILE).contains("ulimit -n"));
    }

    /// A log of this thread, or `None` with a message if the host does not allow one.
    fn log(pages: usize) -> Option<SwitchLog> {
        SwitchLog::of_thread(own_tid(), pages).inspect_err(|error| eprintln!("SKIPPED: {error}")).ok()
    }

    #[test]
    fn switches_of_a_thread_are_those_that_the_scheduler_counts() {
        let Some(log) = log(16) else { return };
        let tid = own_tid();
        let before = ThreadStats::read(tid).unwrap();
        let mut switches = Vec::new();
        log.drain(|_| {});
        for _ in 0..50 {
            std::thread::sleep(Duration::from_micros(200));
        }
        log.drain(|switch| switches.push(switch));
        let grown = ThreadStats::read(tid).unwrap().since(before);
        let count = |kind| switches.iter().filter(|switch| switch.kind == kind).count() as u64;
        assert!(count(SwitchKind::Blocked) >= 50);
        // The host may preempt this thread between a reading and a drain
        let near = |counted: u64, grown: u64| counted.abs_diff(grown) <= 2;
        assert!(near(count(SwitchKind::Blocked), grown.voluntary_switches), "{grown:?}");
        assert!(near(count(SwitchKind::Preempted), grown.involuntary_switches), "{grown:?}");
        assert!(switches.is_sorted_by_key(|switch| switch.at_ns));
        assert_eq!(log.lost(), 0);
    }

    #[test]
    fn switches_are_stamped_by_the_clock_of_this_process() {
        let Some(log) = log(16) else { return };
        log.drain(|_| {});
        let before_ns = clock::monotonic_ns();
        std::thread::sleep(Duration::from_micros(200));
        let after_ns = clock::monotonic_ns();
        let mut switches = Vec::new();
        log.drain(|switch| switches.push(switch));
        let within = |switch: &&Switch| (before_ns..after_ns).contains(&switch.at_ns);
        assert!(switches.iter().filter(within).count() >= 2, "{before_ns}..{after_ns}: {switches:?}");
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
