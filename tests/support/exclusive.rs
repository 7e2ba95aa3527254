//! Exclusive use of the host's CPUs, and judgements on what the host did in a window.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{PoisonError, RwLock, RwLockWriteGuard};
use std::thread;

use host::disturbance::{Verdict, Watch};

use super::cpus;

/// Times that [`judge_undisturbed`] runs a test at most.
const TRIES: u32 = 6;

/// Undisturbed windows in which a test fails before [`judge_undisturbed`] lets its failure stand.
///
/// An outer hypervisor also takes time that it does not report: it stops the whole machine, or
/// waits for a page of it. Such a window looks undisturbed. A fault of ours is there in each.
const FAILURES: u32 = 3;

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

/// What has disturbed since `watch` started; `None` if it is too little to matter.
fn disturbance(watch: &Watch) -> Option<String> {
    let disturbance = watch.disturbance();
    (disturbance.verdict() != Verdict::Known).then(|| disturbance.to_string())
}

/// Runs a test that judges what the host did in a window of time.
///
/// `test` measures and asserts. Its failure stands if it fails in [`FAILURES`] undisturbed windows.
/// Until then it runs again, up to [`TRIES`] times in all; the tries left over are for windows in
/// which other tasks or an outer hypervisor used the CPUs. If they do not suffice, nothing can be
/// said: the test prints a line that begins with `UNJUDGED` and passes. A failure that did not come
/// again is printed after `REPEATED`. `.ci/run` counts the lines of both kinds and bounds them.
pub(crate) fn judge_undisturbed(mut test: impl FnMut()) {
    let _exclusive = Exclusive::take();
    let (mut failures, mut disturbances) = (0, String::new());
    for _ in 0..TRIES {
        let watch = Watch::start(cpus());
        let Err(failure) = catch_unwind(AssertUnwindSafe(&mut test)) else {
            if failures > 0 {
                report("REPEATED", &format!("passed after {failures} failures in undisturbed windows"));
            }
            return;
        };
        match disturbance(&watch) {
            Some(disturbance) => disturbances = disturbance,
            None => failures += 1,
        }
        if failures == FAILURES {
            resume_unwind(failure);
        }
    }
    unjudged(&disturbances);
}

/// Runs `measure` until the host is undisturbed or `is_good` holds, up to [`TRIES`] times.
/// Returns the last result, and what disturbed it.
pub(crate) fn measure_undisturbed<R>(
    mut measure: impl FnMut() -> R,
    is_good: impl Fn(&R) -> bool,
) -> (R, Option<String>) {
    let _exclusive = Exclusive::take();
    let mut tries = 1;
    loop {
        let watch = Watch::start(cpus());
        let result = measure();
        let disturbance = disturbance(&watch);
        if tries == TRIES || disturbance.is_none() || is_good(&result) {
            return (result, disturbance);
        }
        tries += 1;
    }
}

/// Prints that the calling test cannot judge, and why.
pub(crate) fn unjudged(why: &str) {
    report("UNJUDGED", why);
}

/// Prints a line about the calling test that `.ci/run` counts.
fn report(what: &str, why: &str) {
    let thread = thread::current();
    eprintln!("{what} {}: {why}", thread.name().unwrap_or("a test"));
}
