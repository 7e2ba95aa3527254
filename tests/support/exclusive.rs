//! Exclusive use of the host's CPUs, and judgements on what the host did in a window.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{PoisonError, RwLock, RwLockWriteGuard};
use std::thread;

use host::disturbance::{Verdict, Watch};

use super::cpus;

/// Times that [`judge_undisturbed`] runs a test on a disturbed host.
const TRIES: u32 = 4;

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
/// `test` measures and asserts. If it fails while the host is undisturbed, the failure stands. If
/// it fails while other tasks or an outer hypervisor use the CPUs, it runs again, up to [`TRIES`]
/// times in all. Then nothing can be said: it prints a line that begins with `UNJUDGED` and passes.
/// `.ci/run` counts these lines and bounds them.
pub(crate) fn judge_undisturbed(mut test: impl FnMut()) {
    let _exclusive = Exclusive::take();
    for attempt in 1..=TRIES {
        let watch = Watch::start(cpus());
        let Err(failure) = catch_unwind(AssertUnwindSafe(&mut test)) else { return };
        let Some(disturbance) = disturbance(&watch) else { resume_unwind(failure) };
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
    let thread = thread::current();
    eprintln!("UNJUDGED {}: {why}", thread.name().unwrap_or("a test"));
}
