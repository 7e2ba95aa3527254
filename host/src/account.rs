//! The host's accounts: what its scheduler has noted about a thread, and about its CPUs.
//!
//! Sources: `/proc/self/task/TID/schedstat` (run time, run delay, time slices; kernel/sched/stats.h), the
//! `State` and `ctxt_switches` lines of `/proc/self/task/TID/status`, and `/proc/stat` (proc(5)).

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Duration;

use libc::pid_t;
use nix::sys::resource::{UsageWho, getrusage};

use super::cpus::Cpus;

/// What the scheduler has noted about one thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThreadAccount {
    /// Time on a CPU (ns). The kernel brings it up to date at ticks and switches.
    pub run_ns: u64,
    /// Time that the thread wanted to run and waited for a CPU (ns).
    pub run_delay_ns: u64,
    /// Times the thread got a CPU.
    pub arrivals: u64,
    /// Times the thread gave its CPU up.
    pub voluntary_switches: u64,
    /// Times the host took it: its preemptions.
    pub involuntary_switches: u64,
}

impl ThreadAccount {
    /// The account of thread `tid` of this process.
    ///
    /// # Errors
    /// The host's reason; most likely the thread has ended.
    pub fn read(tid: pid_t) -> io::Result<Self> {
        let [run_ns, run_delay_ns, arrivals] =
            parse_schedstat(&fs::read_to_string(format!("/proc/self/task/{tid}/schedstat"))?)?;
        let status = fs::read_to_string(format!("/proc/self/task/{tid}/status"))?;
        Ok(Self {
            run_ns,
            run_delay_ns,
            arrivals,
            voluntary_switches: status_field(&status, "voluntary_ctxt_switches:")?,
            involuntary_switches: status_field(&status, "nonvoluntary_ctxt_switches:")?,
        })
    }

    /// The run time and the run delay (ns) of thread `tid` alone: for those who ask often.
    ///
    /// # Errors
    /// As of [`read`](Self::read).
    pub fn read_times(tid: pid_t) -> io::Result<(u64, u64)> {
        let [run_ns, run_delay_ns, _] =
            parse_schedstat(&fs::read_to_string(format!("/proc/self/task/{tid}/schedstat"))?)?;
        Ok((run_ns, run_delay_ns))
    }

    /// The account of a thread that is falling asleep, and what `count` gives, both at one moment: each counts its
    /// switches, and a host in a hurry can take milliseconds over the last one. `None` if it does not stay asleep.
    ///
    /// # Errors
    /// As of [`read`](Self::read).
    pub fn read_asleep<C>(tid: pid_t, mut count: impl FnMut() -> C) -> io::Result<Option<(Self, C)>> {
        const TRIES: u32 = 500;
        for _ in 0..TRIES {
            thread::sleep(Duration::from_millis(1));
            let account = Self::read(tid)?;
            let counted = count();
            // It has not slept and woken in between, nor is it about to.
            if is_asleep(tid)? && Self::read(tid)? == account {
                return Ok(Some((account, counted)));
            }
        }
        Ok(None)
    }

    /// What was added since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            run_ns: self.run_ns.saturating_sub(earlier.run_ns),
            run_delay_ns: self.run_delay_ns.saturating_sub(earlier.run_delay_ns),
            arrivals: self.arrivals.saturating_sub(earlier.arrivals),
            voluntary_switches: self.voluntary_switches.saturating_sub(earlier.voluntary_switches),
            involuntary_switches: self.involuntary_switches.saturating_sub(earlier.involuntary_switches),
        }
    }
}

/// Whether thread `tid` of this process sleeps, and can be woken.
///
/// # Errors
/// The host's reason; most likely the thread has ended.
pub fn is_asleep(tid: pid_t) -> io::Result<bool> {
    let status = fs::read_to_string(format!("/proc/self/task/{tid}/status"))?;
    Ok(status
        .lines()
        .any(|line| line.strip_prefix("State:").is_some_and(|state| state.trim_start().starts_with('S'))))
}

/// A thread's run delay, to be read often: its file stays open.
#[derive(Debug)]
pub struct RunDelay(File);

impl RunDelay {
    /// Of the calling thread.
    ///
    /// # Errors
    /// The host's reason.
    pub fn of_this_thread() -> io::Result<Self> {
        File::open("/proc/thread-self/schedstat").map(Self)
    }

    /// Of thread `tid` of this process.
    ///
    /// # Errors
    /// The host's reason.
    pub fn of_thread(tid: pid_t) -> io::Result<Self> {
        File::open(format!("/proc/self/task/{tid}/schedstat")).map(Self)
    }

    /// The run delay (ns); exact where the thread itself asks.
    ///
    /// # Errors
    /// The host's reason.
    pub fn read_ns(&self) -> io::Result<u64> {
        let mut text = [0; 80];
        let length = self.0.read_at(&mut text, 0)?;
        let text = text.get(..length).and_then(|text| str::from_utf8(text).ok());
        let [_, run_delay_ns, _] = parse_schedstat(text.ok_or_else(|| malformed("schedstat"))?)?;
        Ok(run_delay_ns)
    }
}

/// The calling thread's own run delay (ns), exact: it is on a CPU, so nothing is being added.
///
/// # Errors
/// The host's reason.
pub fn own_run_delay_ns() -> io::Result<u64> {
    RunDelay::of_this_thread()?.read_ns()
}

/// Times the host took the calling thread off its CPU, without a look into `/proc`, which takes some 50 us: for on the
/// way to the first guest instruction.
pub fn own_involuntary_switches() -> u64 {
    let usage = getrusage(UsageWho::RUSAGE_THREAD);
    usage.map_or(0, |usage| u64::try_from(usage.involuntary_context_switches()).unwrap_or(0))
}

/// What the host's CPUs have been doing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MachineAccount {
    /// CPU time that anybody used, interrupts included.
    pub busy: Duration,
    /// CPU time that an outer hypervisor took from this host.
    pub stolen: Duration,
    /// CPU time that this process used.
    pub own: Duration,
}

impl MachineAccount {
    /// The account of `cpus`. The kernel counts in ticks of 10 ms.
    ///
    /// # Errors
    /// The host's reason.
    pub fn read(cpus: &Cpus) -> io::Result<Self> {
        let (busy, stolen) = parse_stat(&fs::read_to_string("/proc/stat")?, cpus);
        Ok(Self { busy, stolen, own: process_cpu_time()? })
    }

    /// What was added since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            busy: self.busy.saturating_sub(earlier.busy),
            stolen: self.stolen.saturating_sub(earlier.stolen),
            own: self.own.saturating_sub(earlier.own),
        }
    }

    /// CPU time that other processes used.
    pub fn strangers(&self) -> Duration {
        self.busy.saturating_sub(self.own)
    }
}

fn process_cpu_time() -> io::Result<Duration> {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID)?;
    Ok(Duration::from(time))
}

fn parse_schedstat(text: &str) -> io::Result<[u64; 3]> {
    let mut fields = text.split_ascii_whitespace().map(str::parse);
    match (fields.next(), fields.next(), fields.next()) {
        (Some(Ok(run)), Some(Ok(delay)), Some(Ok(arrivals))) => Ok([run, delay, arrivals]),
        _ => Err(malformed("schedstat")),
    }
}

fn status_field(status: &str, name: &str) -> io::Result<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(name));
    value.and_then(|value| value.trim().parse().ok()).ok_or_else(|| malformed("status"))
}

/// Busy and stolen time of `cpus`, from `cpuN user nice system idle iowait irq softirq steal ...`.
fn parse_stat(stat: &str, cpus: &Cpus) -> (Duration, Duration) {
    let mut sums = (Duration::ZERO, Duration::ZERO);
    for line in stat.lines() {
        let mut words = line.split_ascii_whitespace();
        let cpu = words.next().and_then(|word| word.strip_prefix("cpu")?.parse::<usize>().ok());
        if !cpu.is_some_and(|cpu| cpus.iter().any(|wanted| wanted == cpu)) {
            continue;
        }
        let ticks: Vec<u64> = words.map_while(|word| word.parse().ok()).collect();
        if let [user, nice, system, _idle, _iowait, irq, softirq, steal, ..] = ticks[..] {
            // USER_HZ is 100 on every Linux of this architecture.
            sums.0 += Duration::from_millis(10 * (user + nice + system + irq + softirq));
            sums.1 += Duration::from_millis(10 * steal);
        }
    }
    sums
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("unexpected content of {what}"))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn stat_counts_the_wanted_cpus_only() {
        let stat = "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 1 2 3 99 99 4 5 6 0 0\ncpu1 1 1 1 1 1 1 1 1 0 0\nintr 5\n";
        let (busy, stolen) = parse_stat(stat, &"0".parse().unwrap());
        assert_eq!((busy, stolen), (Duration::from_millis(150), Duration::from_millis(60)));
        let (busy, _) = parse_stat(stat, &"0-1".parse().unwrap());
        assert_eq!(busy, Duration::from_millis(200));
    }

    #[test]
    fn malformed_files_are_errors_not_zeros() {
        assert!(parse_schedstat("12 34").is_err());
        assert!(parse_schedstat("a b c").is_err());
        assert!(status_field("nonvoluntary_ctxt_switches:\t7\n", "voluntary_ctxt_switches:").is_err());
        assert_eq!(parse_schedstat("12 34 5\n").unwrap(), [12, 34, 5]);
    }

    #[test]
    fn own_account_is_readable_and_grows() {
        let tid = crate::thread::own_tid();
        let before = ThreadAccount::read(tid).unwrap();
        thread::sleep(Duration::from_millis(2));
        let after = ThreadAccount::read(tid).unwrap();
        assert!(after.voluntary_switches > before.voluntary_switches);
        assert!(after.run_delay_ns >= before.run_delay_ns);
        assert!((after.involuntary_switches..).contains(&own_involuntary_switches()));
    }

    #[test]
    fn account_at_rest_is_not_of_a_thread_that_runs_or_is_about_to() {
        let (tell_tid, tid) = mpsc::channel();
        let (wake, woken) = mpsc::channel::<()>();
        let sleeper = thread::spawn(move || {
            tell_tid.send(crate::thread::own_tid()).unwrap();
            woken.iter().count()
        });
        let tid = tid.recv().unwrap();
        let (mut counted, mut wake) = (0, Some(wake));
        let account = ThreadAccount::read_asleep(tid, || {
            counted += 1;
            if counted <= 3 {
                wake.as_ref().unwrap().send(()).unwrap();
            }
            counted
        });
        assert_eq!(account.unwrap().map(|(_, counted)| counted), Some(counted));
        assert!(counted > 3, "{counted}");
        drop(wake.take());
        assert_eq!(sleeper.join().unwrap(), 3);
        let own = ThreadAccount::read_asleep(crate::thread::own_tid(), || ());
        assert!(own.unwrap().is_none());
    }
}
