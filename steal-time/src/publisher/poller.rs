//! The poller: makes vCPU threads publish their run delay when no event does.
//!
//! A publisher without switch events learns of run delay only when the vCPU's thread is outside the
//! guest, and a spinning guest does not leave it. The poller reads the run delay of all vCPU
//! threads periodically, and kicks those whose run delay has grown.

use std::ffi::c_int;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use libc::pid_t;

use crate::error::StealTimeError;
use host::kick;
use host::stats::RunDelay;
use host::sync::lock;
use host::thread::own_tid;
use host::ticker::Ticker;

/// The polling period. Steal is late by this much at most, plus the kick.
pub(super) const PERIOD: Duration = Duration::from_millis(10);

/// A thread that polls vCPU threads. Dropping it stops the thread.
#[derive(Debug)]
pub(super) struct Poller {
    threads: Arc<Mutex<Vec<PolledThread>>>,
    signal: c_int,
    _ticker: Option<Ticker>,
}

#[derive(Debug)]
struct PolledThread {
    tid: pid_t,
    signal: c_int,
    run_delay: RunDelay,
    last_ns: u64,
}

impl Poller {
    /// Starts the poller, which kicks by `signal`. If no thread can be started, nothing is polled.
    pub(super) fn start(signal: c_int) -> Self {
        let threads = Arc::new(Mutex::new(Vec::<PolledThread>::new()));
        let polled = Arc::clone(&threads);
        let tick = move || lock(&polled).iter_mut().for_each(PolledThread::poll);
        Self { threads, signal, _ticker: Ticker::start("poller", PERIOD, || {}, tick).ok() }
    }

    /// Polls the calling thread until [`forget_this_thread`](Self::forget_this_thread).
    pub(super) fn poll_this_thread(&self) -> Result<(), StealTimeError> {
        // Opened by the thread itself: another PID namespace's `/proc` knows it by another ID
        let run_delay = RunDelay::of_this_thread().map_err(StealTimeError::RunDelay)?;
        lock(&self.threads).push(PolledThread { tid: own_tid(), signal: self.signal, run_delay, last_ns: 0 });
        Ok(())
    }

    /// Stops polling the calling thread. On return it is no longer kicked.
    pub(super) fn forget_this_thread(&self) {
        let own = own_tid();
        lock(&self.threads).retain(|polled| polled.tid != own);
    }
}

impl PolledThread {
    fn poll(&mut self) {
        let run_delay_ns = self.run_delay.read_ns().unwrap_or(self.last_ns);
        if std::mem::replace(&mut self.last_ns, run_delay_ns) != run_delay_ns {
            kick::signal_thread(self.tid, self.signal);
        }
    }
}
