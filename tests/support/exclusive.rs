//! Exclusive use of the host's CPUs, and judgements on what the host did in a window.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{PoisonError, RwLock, RwLockWriteGuard};
use std::thread;
use std::time::{Duration, Instant};

use host::stats::CpuStats;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

use super::cpus;

/// Times that [`judge_undisturbed`] runs a test on a disturbed host.
const TRIES: u32 = 4;

/// Share of one CPU from which other tasks, or an outer hypervisor, disturb.
const DISTURBANCE: f64 = 0.06;

/// Less CPU time than this is within the resolution of `/proc/stat`: ticks of 10 ms on each CPU.
const RESOLUTION: Duration = Duration::from_millis(25);

/// The CPUs of the host, for one test of this process at a time. A thread may take them again.
pub(crate) struct Exclusive(Held<RwLockWriteGuard<'static, ()>>);

/// A lock of the CPUs; `None` if the thread had one already.
struct Held<G>(Option<G>);

static CPUS: RwLock<()> = RwLock::new(());

thread_local! {
    static IS_HELD: Cell<bool> = const { Cell::new(false) };
}

impl<G> Held<G> {
    fn take(lock: impl FnOnce() -> G) -> Self {
        if IS_HELD.get() {
            return Self(None);
        }
        let guard = lock();
        IS_HELD.set(true);
        Self(Some(guard))
    }
}

impl<G> Drop for Held<G> {
    fn drop(&mut self) {
        if self.0.is_some() {
            IS_HELD.set(false);
        }
    }
}

impl Exclusive {
    /// Waits until no other test of this process uses the CPUs.
    pub(crate) fn take() -> Self {
        Self(Held::take(|| CPUS.write().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// Runs `work`, which judges no time, beside others of its kind, but not beside [`alone`].
pub(crate) fn shared<R>(work: impl FnOnce() -> R) -> R {
    let _shared = Held::take(|| CPUS.read().unwrap_or_else(PoisonError::into_inner));
    work()
}

/// Runs `work` while no other test of this process uses the CPUs.
pub(crate) fn alone<R>(work: impl FnOnce() -> R) -> R {
    let _exclusive = Exclusive::take();
    work()
}

/// CPU time used by this process and its ended children, and by everything else.
struct Usage {
    at: Instant,
    cpus: CpuStats,
    children: Duration,
}

impl Usage {
    fn read() -> Self {
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("the usage of children can be read");
        let microseconds = (usage.user_time() + usage.system_time()).num_microseconds();
        Self {
            at: Instant::now(),
            cpus: CpuStats::read(&cpus()).expect("/proc/stat can be read"),
            children: Duration::from_micros(microseconds.try_into().expect("a positive time")),
        }
    }

    /// What has disturbed since; `None` if it is too little to matter.
    fn disturbance(&self) -> Option<String> {
        let now = Self::read();
        let grown = now.cpus.since(self.cpus);
        let others = grown.other_tasks().saturating_sub(now.children.saturating_sub(self.children));
        let length = now.at - self.at;
        let tolerated = length.mul_f64(DISTURBANCE).max(RESOLUTION);
        (others > tolerated || grown.stolen > tolerated).then(|| {
            format!(
                "in {length:.0?} other tasks ran for {others:.0?}, a hypervisor took {:.0?}",
                grown.stolen
            )
        })
    }
}

/// Runs a test that judges what the host did in a window of time.
///
/// `test` measures and asserts. If it fails while the host is undisturbed, the failure stands. If
/// it fails while other tasks or an outer hypervisor use the CPUs, it runs again, up to [`TRIES`]
/// times in all. Then nothing can be said: it prints a line that begins with `UNJUDGED` and passes.
/// `.ci/run` counts these lines and bounds them.
pub(crate) fn judge_undisturbed(mut test: impl FnMut()) {
    let _exclusive = Exclusive::take();
    for attempt in 1..=TRIES {
        let before = Usage::read();
        let Err(failure) = catch_unwind(AssertUnwindSafe(&mut test)) else { return };
        let Some(disturbance) = before.disturbance() else { resume_unwind(failure) };
        if attempt == TRIES {
            unjudged(&disturbance);
        }
    }
}

/// Runs `measure` until the host is undisturbed or `is_good` holds, up to [`TRIES`] times. Returns
/// the last result, and what disturbed it.
pub(crate) fn measure_undisturbed<R>(
    mut measure: impl FnMut() -> R,
    is_good: impl Fn(&R) -> bool,
) -> (R, Option<String>) {
    let _exclusive = Exclusive::take();
    let mut tries = 1;
    loop {
        let before = Usage::read();
        let result = measure();
        let disturbance = before.disturbance();
        if tries == TRIES || disturbance.is_none() || is_good(&result) {
            return (result, disturbance);
        }
        tries += 1;
    }
}

/// Prints that the calling test cannot judge, and why.
pub(crate) fn unjudged(why: &str) {
    let thread = thread::current();
    eprintln!("UNJUDGED {}: {why}", thread.name().unwrap_or("a test"));
}
