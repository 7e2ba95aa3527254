//! What one thread of this process does, read by another thread: again and again, from files that
//! stay open.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use libc::pid_t;
use nix::time::{ClockId, clock_gettime};

use crate::clock;
use crate::stats::{self, RunDelay};

/// Room for `/proc/self/task/TID/status`, up to its last line, which counts switches.
const STATUS_BYTES: usize = 8192;

/// Reads one thread of this process.
#[derive(Debug)]
pub struct ThreadProbe {
    cpu_clock: ClockId,
    run_delay: RunDelay,
    status: File,
}

/// What a thread has done so far, and does now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThreadReading {
    /// The moment (ns of `CLOCK_MONOTONIC`).
    pub at_ns: u64,
    /// CPU time so far (ns), with that of the present turn.
    pub run_ns: u64,
    /// Run delay so far (ns), without a wait that lasts.
    pub run_delay_ns: u64,
    /// Number of times that it blocked.
    pub sleeps: u64,
    /// It is in interruptible sleep.
    pub is_asleep: bool,
}

impl ThreadProbe {
    /// Opens the files of thread `tid`.
    ///
    /// # Errors
    /// The error of open(2) or pread(2). `ENOENT`: the thread has ended, or `/proc` is that of
    /// another PID namespace.
    pub fn of_thread(tid: pid_t) -> io::Result<Self> {
        let probe = Self {
            cpu_clock: cpu_clock_of(tid),
            run_delay: RunDelay::of_thread(tid)?,
            status: File::open(format!("/proc/self/task/{tid}/status"))?,
        };
        probe.read()?;
        Ok(probe)
    }

    /// Reads the thread. Its counts may differ by what it does in the few microseconds of the call.
    ///
    /// # Errors
    /// The error of pread(2) or `clock_gettime(2)`. `ESRCH` or `EINVAL`: the thread has ended.
    pub fn read(&self) -> io::Result<ThreadReading> {
        let mut text = [0; STATUS_BYTES];
        let length = self.status.read_at(&mut text, 0)?;
        let text = String::from_utf8_lossy(text.get(..length).unwrap_or(&text));
        let (is_asleep, sleeps) = stats::parse_sleep(&text)?;
        let run_delay_ns = self.run_delay.read_ns()?;
        let run = Duration::from(clock_gettime(self.cpu_clock)?);
        let run_ns = u64::try_from(run.as_nanos()).unwrap_or(u64::MAX);
        Ok(ThreadReading { at_ns: clock::monotonic_ns(), run_ns, run_delay_ns, sleeps, is_asleep })
    }
}

/// Returns the CPU clock of thread `tid` (Linux `include/linux/posix-timers_types.h`:
/// `CPUCLOCK_PERTHREAD_MASK`, `CPUCLOCK_SCHED`).
fn cpu_clock_of(tid: pid_t) -> ClockId {
    const PER_THREAD: libc::clockid_t = 4;
    const SCHED: libc::clockid_t = 2;
    ClockId::from_raw(!tid << 3 | PER_THREAD | SCHED)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;
    use crate::thread::own_tid;

    #[test]
    fn reading_of_a_thread_that_spins_grows_and_of_one_that_sleeps_stays() {
        let (send_tid, tid) = mpsc::channel();
        let (wake, woken) = mpsc::channel::<()>();
        let sleeper = thread::spawn(move || {
            send_tid.send(own_tid()).unwrap();
            woken.iter().count()
        });
        let probe = ThreadProbe::of_thread(tid.recv().unwrap()).unwrap();
        let before = loop {
            let reading = probe.read().unwrap();
            if reading.is_asleep {
                break reading;
            }
        };
        let own = ThreadProbe::of_thread(own_tid()).unwrap();
        let spinning = own.read().unwrap();
        while own.read().unwrap().run_ns < spinning.run_ns + 100_000 {}
        assert!(!spinning.is_asleep && spinning.at_ns < own.read().unwrap().at_ns);
        let after = probe.read().unwrap();
        assert_eq!(ThreadReading { at_ns: before.at_ns, ..after }, before);
        wake.send(()).unwrap();
        while probe.read().unwrap().sleeps == before.sleeps {}
        drop(wake);
        assert_eq!(sleeper.join().unwrap(), 1);
        assert!(probe.read().is_err(), "it has ended");
    }
}
