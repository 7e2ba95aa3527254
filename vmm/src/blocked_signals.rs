//! Termination signals of a program that does not use [`host::termination`]: blocked while it has a
//! guest, whose event loop receives them.

use std::cell::Cell;
use std::thread::{self, ThreadId};

use host::termination;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};

use crate::error::VmmError;

thread_local! {
    /// Guards of this thread.
    static GUARDS: Cell<usize> = const { Cell::new(0) };
    /// The signals that the first of them blocked.
    static BLOCKED: Cell<SigSet> = Cell::new(SigSet::empty());
}

/// Guard that keeps SIGINT, SIGTERM and SIGHUP blocked in the thread that created it, and in
/// threads created afterwards. When the last guard of the thread is dropped there, the signals are
/// delivered again.
#[derive(Debug)]
pub struct BlockedSignals(ThreadId);

impl BlockedSignals {
    /// Blocks the signals. Returns `None` in a process that [`host::termination`] ends: they are
    /// blocked for good.
    ///
    /// # Errors
    /// [`VmmError::Host`] if `pthread_sigmask(3)` fails.
    pub fn new() -> Result<Option<Self>, VmmError> {
        if termination::fd().is_some() {
            return Ok(None);
        }
        let mut before = SigSet::empty();
        let blocked = pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&signals()), Some(&mut before));
        blocked.map_err(VmmError::cannot("block termination signals"))?;
        if GUARDS.replace(GUARDS.get() + 1) == 0 {
            BLOCKED.set(signals().iter().filter(|signal| !before.contains(*signal)).collect());
        }
        Ok(Some(Self(thread::current().id())))
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // Another thread cannot change the mask of the first.
        if thread::current().id() == self.0 && GUARDS.replace(GUARDS.get() - 1) == 1 {
            // It does not fail for a valid set.
            let _ = pthread_sigmask(SigmaskHow::SIG_UNBLOCK, Some(&BLOCKED.get()), None);
        }
    }
}

/// Returns the signals that end a run.
pub(crate) fn signals() -> SigSet {
    SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP])
}
