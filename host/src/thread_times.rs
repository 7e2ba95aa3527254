//! Where the time of a thread goes: on a CPU, waiting for one, asleep, or stopped.
//!
//! Four parts make up the wall time of a thread. The kernel counts two of them: CPU time and run
//! delay. The rest is sleep, unless the process was stopped (SIGSTOP, SIGTSTP, a debugger, the
//! cgroup freezer). No counter tells a stopped thread from a sleeping one. But a thread that asks
//! to be woken after a while sleeps no longer than that, however loaded its host is: what it waits
//! for a CPU then is run delay. So a thread that sleeps in bounded waits can tell by itself
//! ([`RunningTime`]). No signal handler could: the freezer sends no signal.

use std::io;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::clock;
use crate::stats;

/// The process was stopped if the thread slept for longer than this many times the limit of a wait.
///
/// A timer may be late by the thread's timer slack, and by what an outer hypervisor takes.
const STOPPED: u32 = 2;

/// Readings of [`ThreadTimes::of_this_thread`] until two agree. One preemption costs one more.
const TRIES: u32 = 8;

/// Wall time, CPU time and run delay of a thread, read by itself at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThreadTimes {
    /// The moment (ns of `CLOCK_MONOTONIC`).
    pub at_ns: u64,
    /// CPU time so far (ns).
    pub run_ns: u64,
    /// Run delay so far (ns).
    pub run_delay_ns: u64,
}

impl ThreadTimes {
    /// Reads the times of the calling thread. It takes 2 us.
    ///
    /// The run delay is read before and after the clocks. If it grew, the thread was switched in
    /// between, and all are read again.
    ///
    /// # Errors
    /// See [`stats::own_run_delay_ns`].
    pub fn of_this_thread() -> io::Result<Self> {
        let mut times = Self { run_delay_ns: stats::own_run_delay_ns()?, ..Self::default() };
        for _ in 0..TRIES {
            let before_ns = times.run_delay_ns;
            times = Self {
                at_ns: clock::monotonic_ns(),
                run_ns: own_cpu_time_ns(),
                run_delay_ns: stats::own_run_delay_ns()?,
            };
            if times.run_delay_ns == before_ns {
                break;
            }
        }
        Ok(times)
    }

    /// Returns the time since `earlier` for which the thread neither had a CPU nor waited for one
    /// (ns): it slept, or was stopped.
    pub fn off_cpu_since(self, earlier: Self) -> u64 {
        let wall_ns = self.at_ns.saturating_sub(earlier.at_ns);
        let run_ns = self.run_ns.saturating_sub(earlier.run_ns);
        let run_delay_ns = self.run_delay_ns.saturating_sub(earlier.run_delay_ns);
        wall_ns.saturating_sub(run_ns).saturating_sub(run_delay_ns)
    }
}

/// Returns the CPU time of the calling thread (ns); 0 on failure, which `clock_gettime(2)` does not
/// document for this clock.
fn own_cpu_time_ns() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).unwrap_or_default();
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Tells the sleep of a thread from the time for which its process was stopped.
///
/// Source of the times: the thread itself ([`ThreadTimes::of_this_thread`]), before its first wait
/// and after each.
#[derive(Clone, Copy, Debug)]
pub struct RunningTime {
    last: ThreadTimes,
    slept_ns: u64,
    stopped_ns: u64,
}

impl RunningTime {
    /// Begins at `now`.
    pub fn since(now: ThreadTimes) -> Self {
        Self { last: now, slept_ns: 0, stopped_ns: 0 }
    }

    /// Adds the time up to `now`, in which the thread waited once, for `limit` at most.
    ///
    /// If the process was stopped in between, none of that time is sleep: so sleep of up to `limit`
    /// is lost for each stop, and a stop shorter than `limit` may count as sleep.
    pub fn add_wait(&mut self, now: ThreadTimes, limit: Duration) {
        let off_cpu_ns = now.off_cpu_since(std::mem::replace(&mut self.last, now));
        if Duration::from_nanos(off_cpu_ns) > limit * STOPPED {
            self.stopped_ns += off_cpu_ns;
        } else {
            self.slept_ns += off_cpu_ns;
        }
    }

    /// Returns how long the thread slept (ns): without CPU time, run delay and stopped time.
    pub fn slept_ns(&self) -> u64 {
        self.slept_ns
    }

    /// Returns how long the process was stopped (ns).
    pub fn stopped_ns(&self) -> u64 {
        self.stopped_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const LIMIT: Duration = Duration::from_millis(10);

    fn at(ms: u64, run_ms: u64, run_delay_ms: u64) -> ThreadTimes {
        ThreadTimes { at_ns: ms * MS, run_ns: run_ms * MS, run_delay_ns: run_delay_ms * MS }
    }

    #[test]
    fn each_nanosecond_is_cpu_time_run_delay_or_sleep() {
        // Preempted for 3 ms on its way to sleep, asleep for 5 ms, then 1 ms until it had a CPU
        let mut time = RunningTime::since(at(100, 7, 20));
        time.add_wait(at(110, 8, 24), LIMIT);
        assert_eq!((time.slept_ns(), time.stopped_ns()), (5 * MS, 0));
        assert_eq!(at(110, 8, 24).off_cpu_since(at(100, 7, 20)), 5 * MS);
    }

    #[test]
    fn wait_on_a_loaded_host_is_no_stop() {
        let mut time = RunningTime::since(at(0, 0, 0));
        time.add_wait(at(4_000, 1, 3_989), LIMIT);
        assert_eq!((time.slept_ns(), time.stopped_ns()), (10 * MS, 0));
    }

    #[test]
    fn stop_in_one_of_many_waits_is_no_sleep() {
        let mut time = RunningTime::since(at(0, 0, 0));
        for wait in 1..=100 {
            time.add_wait(at(wait * 11, 0, 0), LIMIT);
        }
        time.add_wait(at(1100 + 3_004, 1, 1), LIMIT);
        time.add_wait(at(1100 + 3_004 + 6, 1, 1), LIMIT);
        assert_eq!((time.slept_ns(), time.stopped_ns()), (1106 * MS, 3_002 * MS));
    }

    #[test]
    fn counters_that_read_less_than_before_give_no_time() {
        assert_eq!(at(5, 3, 3).off_cpu_since(at(6, 4, 4)), 0);
        assert_eq!(at(5, 9, 0).off_cpu_since(at(0, 0, 0)), 0);
    }

    #[test]
    fn own_times_grow_by_no_more_than_wall_time() {
        let before = ThreadTimes::of_this_thread().unwrap();
        std::thread::sleep(Duration::from_millis(2));
        let after = ThreadTimes::of_this_thread().unwrap();
        assert!(after.off_cpu_since(before) <= after.at_ns - before.at_ns);
        assert!(after.off_cpu_since(before) >= 1_900_000, "{before:?} {after:?}");
    }
}
