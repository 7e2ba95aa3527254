//! The heal timers: one perf event per vCPU thread, on its own CPU time, that runs `steal_heal`.
//!
//! The first event on a thread in the whole system makes the kernel wait for an RCU grace period, 15 ms or so, in
//! whoever opens it (`account_event` in kernel/events/core.c). No vCPU has the time: a thread of our own opens them
//! all, and a vCPU runs its first milliseconds without.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::{self, JoinHandle};

use super::error::BpfError;
use super::syscall;

/// CPU time between two looks at a vCPU's byte: the longest that it can stay wrong.
const PERIOD_NS: u64 = 1_000_000;

/// A thread's heal timer. Opened some time after it was asked for; closed when this is dropped.
#[derive(Debug, Default)]
pub(super) struct HealTimer(OnceLock<OwnedFd>);

struct Request {
    thread: libc::pid_t,
    /// Weak: a timer that nobody waits for any more is not opened.
    timer: Weak<HealTimer>,
}

/// Opens heal timers, in a thread that ends when this is dropped.
#[derive(Debug)]
pub(super) struct HealTimers {
    /// `None` only while it is dropped.
    requests: Option<Sender<Request>>,
    opener: Option<JoinHandle<()>>,
    failure: Arc<OnceLock<BpfError>>,
}

impl HealTimers {
    /// Begins, with the loaded `steal_heal`.
    pub(super) fn with_program(heal: OwnedFd) -> Result<Self, BpfError> {
        let (requests, received) = mpsc::channel();
        let failure = Arc::new(OnceLock::new());
        let opener = thread::Builder::new()
            .name("heal-timers".into())
            .spawn({
                let failure = Arc::clone(&failure);
                move || open_all(&received, &heal, &failure)
            })
            .map_err(BpfError::from_kernel("start a thread for the heal timers"))?;
        Ok(Self { requests: Some(requests), opener: Some(opener), failure })
    }

    /// Asks for the timer of a thread of this process.
    pub(super) fn request(&self, thread: libc::pid_t) -> Arc<HealTimer> {
        let timer = Arc::new(HealTimer::default());
        if let Some(requests) = &self.requests {
            // The opener ends after its sender alone, so that it is there to receive
            let _ = requests.send(Request { thread, timer: Arc::downgrade(&timer) });
        }
        timer
    }

    /// Why a timer could not be opened, if one could not.
    pub(super) fn failure(&self) -> Option<&BpfError> {
        self.failure.get()
    }
}

fn open_all(requests: &Receiver<Request>, heal: &OwnedFd, failure: &OnceLock<BpfError>) {
    for Request { thread, timer } in requests {
        let Some(timer) = timer.upgrade() else { continue };
        match syscall::open_cpu_timer(thread, PERIOD_NS, heal.as_fd()) {
            Ok(event) => _ = timer.0.set(event),
            // The first failure says it all
            Err(error) => _ = failure.set(BpfError::from_kernel("open a vCPU's heal timer")(error)),
        }
    }
}

impl Drop for HealTimers {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(opener) = self.opener.take() {
            // Until it is gone, it holds the program. If it panicked, it has said so, and holds nothing
            let _ = opener.join();
        }
    }
}
