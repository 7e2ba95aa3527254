//! Scheduler statistics of threads and CPUs, from `/proc`.
//!
//! Sources: `/proc/self/task/TID/schedstat` (run time, run delay, timeslices; Linux
//! `Documentation/scheduler/sched-stats.rst`), the `State` and `ctxt_switches` lines of
//! `/proc/self/task/TID/status`, and `/proc/stat` (proc(5)).

use std::cell::RefCell;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Duration;

use libc::pid_t;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

use super::cpus::Cpus;

/// Scheduler statistics of one thread, from its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThreadStats {
    /// Time on a CPU (ns). The kernel updates it at ticks and context switches.
    pub run_ns: u64,
    /// Run delay: time for which the thread was runnable and waited for a CPU (ns).
    pub run_delay_ns: u64,
    /// Number of times that the thread was switched in.
    pub timeslices: u64,
    /// Number of times that the thread was switched out because it blocked.
    pub voluntary_switches: u64,
    /// Number of times that the thread was preempted.
    pub involuntary_switches: u64,
}

impl ThreadStats {
    /// Reads the statistics of thread `tid` of this process.
    ///
    /// # Errors
    /// The error of open(2) or read(2). `ENOENT` or `ESRCH`: the thread has ended, or `/proc` is
    /// that of another PID namespace.
    pub fn read(tid: pid_t) -> io::Result<Self> {
        Self::read_in(&format!("/proc/self/task/{tid}"))
    }

    /// Reads the statistics of the calling thread. It also works if `/proc` is that of an outer PID
    /// namespace, where the thread has another ID.
    ///
    /// # Errors
    /// The error of open(2) or read(2), for instance without `/proc`.
    pub fn of_this_thread() -> io::Result<Self> {
        Self::read_in("/proc/thread-self")
    }

    fn read_in(folder: &str) -> io::Result<Self> {
        let [run_ns, run_delay_ns, timeslices] =
            parse_schedstat(&fs::read_to_string(format!("{folder}/schedstat"))?)?;
        let status = fs::read_to_string(format!("{folder}/status"))?;
        Ok(Self {
            run_ns,
            run_delay_ns,
            timeslices,
            voluntary_switches: status_field(&status, "voluntary_ctxt_switches:")?,
            involuntary_switches: status_field(&status, "nonvoluntary_ctxt_switches:")?,
        })
    }

    /// Waits until thread `tid` sleeps, then reads its statistics and the result of `count`, both
    /// at one moment.
    ///
    /// Two counts of the same context switches can be compared only while the thread sleeps. On a
    /// busy host the last switch may take milliseconds. Returns `None` if the thread does not stay
    /// asleep within about 500 ms.
    ///
    /// # Errors
    /// See [`read`](Self::read).
    pub fn read_asleep<C>(tid: pid_t, mut count: impl FnMut() -> C) -> io::Result<Option<(Self, C)>> {
        const TRIES: u32 = 500;
        for _ in 0..TRIES {
            thread::sleep(Duration::from_millis(1));
            let stats = Self::read(tid)?;
            let counted = count();
            // The thread neither woke between the two readings nor is about to
            if is_asleep(tid)? && Self::read(tid)? == stats {
                return Ok(Some((stats, counted)));
            }
        }
        Ok(None)
    }

    /// Returns the growth since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            run_ns: self.run_ns.saturating_sub(earlier.run_ns),
            run_delay_ns: self.run_delay_ns.saturating_sub(earlier.run_delay_ns),
            timeslices: self.timeslices.saturating_sub(earlier.timeslices),
            voluntary_switches: self.voluntary_switches.saturating_sub(earlier.voluntary_switches),
            involuntary_switches: self.involuntary_switches.saturating_sub(earlier.involuntary_switches),
        }
    }
}

/// Whether thread `tid` of this process is in interruptible sleep (state `S`).
///
/// # Errors
/// The error of open(2) or read(2). `ENOENT` or `ESRCH`: the thread has ended.
fn is_asleep(tid: pid_t) -> io::Result<bool> {
    Ok(parse_sleep(&fs::read_to_string(format!("/proc/self/task/{tid}/status"))?)?.0)
}

/// Parses a thread's `status`: whether it is in interruptible sleep (state `S`), and how often it
/// blocked.
pub(crate) fn parse_sleep(status: &str) -> io::Result<(bool, u64)> {
    let state = status.lines().find_map(|line| line.strip_prefix("State:"));
    let is_asleep = state.ok_or_else(|| malformed("status"))?.trim_start().starts_with('S');
    Ok((is_asleep, status_field(status, "voluntary_ctxt_switches:")?))
}

/// The run delay of one thread. The file stays open, so that a reading is one system call.
#[derive(Debug)]
pub struct RunDelay(File);

impl RunDelay {
    /// Opens the run delay of the calling thread.
    ///
    /// # Errors
    /// The error of open(2), for instance without `/proc`.
    pub fn of_this_thread() -> io::Result<Self> {
        File::open("/proc/thread-self/schedstat").map(Self)
    }

    /// Opens the run delay of thread `tid` of this process.
    ///
    /// # Errors
    /// The error of open(2). `ENOENT`: the thread has ended.
    pub fn of_thread(tid: pid_t) -> io::Result<Self> {
        File::open(format!("/proc/self/task/{tid}/schedstat")).map(Self)
    }

    /// Reads the run delay (ns).
    ///
    /// It is exact if the thread reads its own. For another thread it lacks the wait that has not
    /// ended yet.
    ///
    /// # Errors
    /// The error of pread(2). `ESRCH`: the thread has ended.
    pub fn read_ns(&self) -> io::Result<u64> {
        let mut text = [0; 80];
        let length = self.0.read_at(&mut text, 0)?;
        let text = text.get(..length).and_then(|text| str::from_utf8(text).ok());
        let [_, run_delay_ns, _] = parse_schedstat(text.ok_or_else(|| malformed("schedstat"))?)?;
        Ok(run_delay_ns)
    }
}

thread_local! {
    /// The file of [`own_run_delay_ns`], open from its first call until the thread ends.
    static OWN_RUN_DELAY: RefCell<Option<RunDelay>> = const { RefCell::new(None) };
}

/// Reads the calling thread's run delay (ns). It is exact: the thread is on a CPU, so it waits for
/// none.
///
/// The file stays open: a reading takes 0.6 us instead of 4.
///
/// # Errors
/// The error of open(2) or pread(2), for instance without `/proc`.
pub fn own_run_delay_ns() -> io::Result<u64> {
    OWN_RUN_DELAY.with_borrow_mut(|file| match file {
        Some(file) => file.read_ns(),
        None => file.insert(RunDelay::of_this_thread()?).read_ns(),
    })
}

/// Returns the number of times that the calling thread was preempted.
///
/// It uses getrusage(2), since `/proc` takes some 50 us, too long for a VM's start-up. It returns 0
/// on failure.
pub fn own_involuntary_switches() -> u64 {
    let usage = getrusage(UsageWho::RUSAGE_THREAD);
    usage.map_or(0, |usage| u64::try_from(usage.involuntary_context_switches()).unwrap_or(0))
}

/// CPU time of a set of host CPUs and of this process with its children.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CpuStats {
    /// Time in which the CPUs were not idle: all tasks and interrupts.
    pub busy: Duration,
    /// Time that an outer hypervisor took from the CPUs: `steal` in `/proc/stat`.
    pub stolen: Duration,
    /// CPU time of this process and of children that it has waited for, on any CPU.
    pub own: Duration,
}

impl CpuStats {
    /// Reads the statistics of `cpus`. The resolution of `busy` and `stolen` is 10 ms.
    ///
    /// # Errors
    /// The error of reading `/proc/stat`, of `clock_gettime(2)` or of `getrusage(2)`.
    pub fn read(cpus: &Cpus) -> io::Result<Self> {
        let (busy, stolen) = parse_stat(&fs::read_to_string("/proc/stat")?, cpus)?;
        Ok(Self { busy, stolen, own: process_cpu_time()? + children_cpu_time()? })
    }

    /// Returns the sum of two growths.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self { busy: self.busy + other.busy, stolen: self.stolen + other.stolen, own: self.own + other.own }
    }

    /// Returns the growth since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            busy: self.busy.saturating_sub(earlier.busy),
            stolen: self.stolen.saturating_sub(earlier.stolen),
            own: self.own.saturating_sub(earlier.own),
        }
    }

    /// Returns the CPU time of all other processes, interrupts included.
    pub fn other_tasks(&self) -> Duration {
        self.busy.saturating_sub(self.own)
    }
}

fn process_cpu_time() -> io::Result<Duration> {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID)?;
    Ok(Duration::from(time))
}

fn children_cpu_time() -> io::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let microseconds = (usage.user_time() + usage.system_time()).num_microseconds();
    Ok(Duration::from_micros(microseconds.try_into().unwrap_or(0)))
}

fn parse_schedstat(text: &str) -> io::Result<[u64; 3]> {
    let mut fields = text.split_ascii_whitespace().map(str::parse);
    match (fields.next(), fields.next(), fields.next()) {
        (Some(Ok(run)), Some(Ok(delay)), Some(Ok(timeslices))) => Ok([run, delay, timeslices]),
        _ => Err(malformed("schedstat")),
    }
}

fn status_field(status: &str, name: &str) -> io::Result<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(name));
    value.and_then(|value| value.trim().parse().ok()).ok_or_else(|| malformed("status"))
}

/// Parses busy and stolen time of `cpus` from lines `cpuN user nice system idle iowait irq softirq
/// steal ...`. A CPU without a line is an error.
fn parse_stat(stat: &str, cpus: &Cpus) -> io::Result<(Duration, Duration)> {
    let (mut sums, mut found) = ((Duration::ZERO, Duration::ZERO), 0);
    for line in stat.lines() {
        let mut words = line.split_ascii_whitespace();
        let cpu = words.next().and_then(|word| word.strip_prefix("cpu")?.parse::<usize>().ok());
        if !cpu.is_some_and(|cpu| cpus.iter().any(|wanted| wanted == cpu)) {
            continue;
        }
        let ticks: Vec<u64> = words.map_while(|word| word.parse().ok()).collect();
        if let [user, nice, system, _idle, _iowait, irq, softirq, steal, ..] = ticks[..] {
            // USER_HZ is 100 on x86
            sums.0 += Duration::from_millis(10 * (user + nice + system + irq + softirq));
            sums.1 += Duration::from_millis(10 * steal);
            found += 1;
        }
    }
    if found == cpus.count() { Ok(sums) } else { Err(malformed("stat")) }
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("unexpected content of {what}"))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::thread::own_tid;

    #[test]
    fn stat_counts_the_wanted_cpus_only() {
        let stat = "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 1 2 3 99 99 4 5 6 0 0\ncpu1 1 1 1 1 1 1 1 1 0 0\nintr 5\n";
        let (busy, stolen) = parse_stat(stat, &"0".parse().unwrap()).unwrap();
        assert_eq!((busy, stolen), (Duration::from_millis(150), Duration::from_millis(60)));
        let (busy, _) = parse_stat(stat, &"0-1".parse().unwrap()).unwrap();
        assert_eq!(busy, Duration::from_millis(200));
        assert!(parse_stat(stat, &"1-2".parse().unwrap()).is_err(), "CPU 2 has no line");
    }

    #[test]
    fn malformed_files_are_errors_not_zeros() {
        assert!(parse_schedstat("12 34").is_err());
        assert!(parse_schedstat("a b c").is_err());
        assert!(status_field("nonvoluntary_ctxt_switches:\t7\n", "voluntary_ctxt_switches:").is_err());
        assert_eq!(parse_schedstat("12 34 5\n").unwrap(), [12, 34, 5]);
    }

    #[test]
    fn own_stats_are_readable_and_grow() {
        let tid = own_tid();
        let before = ThreadStats::read(tid).unwrap();
        thread::sleep(Duration::from_millis(2));
        let after = ThreadStats::read(tid).unwrap();
        assert!(after.voluntary_switches > before.voluntary_switches);
        assert!(after.run_delay_ns >= before.run_delay_ns);
        assert!((after.involuntary_switches..).contains(&own_involuntary_switches()));
    }

    #[test]
    fn stats_of_sleeping_thread_are_not_taken_while_it_runs_or_wakes() {
        let (send_tid, tid) = mpsc::channel();
        let (wake, woken) = mpsc::channel::<()>();
        let sleeper = thread::spawn(move || {
            send_tid.send(own_tid()).unwrap();
            woken.iter().count()
        });
        let tid = tid.recv().unwrap();
        let (mut counted, mut wake) = (0, Some(wake));
        let stats = ThreadStats::read_asleep(tid, || {
            counted += 1;
            if counted <= 3 {
                wake.as_ref().unwrap().send(()).unwrap();
            }
            counted
        });
        assert_eq!(stats.unwrap().map(|(_, counted)| counted), Some(counted));
        assert!(counted > 3, "{counted}");
        drop(wake.take());
        assert_eq!(sleeper.join().unwrap(), 3);
        let own = ThreadStats::read_asleep(own_tid(), || ());
        assert!(own.unwrap().is_none());
    }
}
