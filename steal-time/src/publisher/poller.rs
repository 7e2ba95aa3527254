//! The poller: makes vCPU threads tell the steal that they have not told.
//!
//! Where nothing tells a monitor of switches, a vCPU's thread learns of what it has lost only outside the guest, and a guest
//! that spins stays inside. So a thread of ours looks at all accounts now and then, and kicks those that have grown.

use std::ffi::c_int;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use libc::pid_t;

use super::StealTimeError;
use host::kick;
use host::stats::RunDelay;
use host::thread::own_tid;
use host::ticker::Ticker;

/// Between two looks: steal is late by so much.
pub(super) const PERIOD: Duration = Duration::from_millis(10);

/// See the module.
#[derive(Debug)]
pub(super) struct Poller {
    threads: Arc<Mutex<Vec<Polled>>>,
    signal: c_int,
    _ticker: Option<Ticker>,
}

#[derive(Debug)]
struct Polled {
    tid: pid_t,
    signal: c_int,
    run_delay: RunDelay,
    seen_ns: u64,
}

impl Poller {
    /// Begins: threads get `signal`. Where there is no thread to be had nobody is polled.
    pub(super) fn start(signal: c_int) -> Self {
        let threads = Arc::new(Mutex::new(Vec::<Polled>::new()));
        let all = Arc::clone(&threads);
        let tick = move || {
            for polled in &mut *all.lock().unwrap_or_else(PoisonError::into_inner) {
                polled.look();
            }
        };
        Self { threads, signal, _ticker: Ticker::start("poller", PERIOD, || {}, tick).ok() }
    }

    /// Reminds the calling thread, until it is [`forgotten`](Self::forget_this_thread).
    pub(super) fn poll_this_thread(&self) -> Result<(), StealTimeError> {
        let tid = own_tid();
        let run_delay = RunDelay::of_thread(tid).map_err(StealTimeError::RunDelay)?;
        self.lock().push(Polled { tid, signal: self.signal, run_delay, seen_ns: 0 });
        Ok(())
    }

    /// When this returns the calling thread is not kicked any more.
    pub(super) fn forget_this_thread(&self) {
        let me = own_tid();
        self.lock().retain(|polled| polled.tid != me);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Polled>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Polled {
    fn look(&mut self) {
        let run_delay_ns = self.run_delay.read_ns().unwrap_or(self.seen_ns);
        if std::mem::replace(&mut self.seen_ns, run_delay_ns) != run_delay_ns {
            kick::signal_thread(self.tid, self.signal);
        }
    }
}
