//! A thread that calls a function periodically.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// A thread that calls a function periodically. Dropping it ends the thread and joins it.
#[derive(Debug)]
pub struct Ticker {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    /// Starts a thread called `name`. It calls `begin` once, then `tick` again and again.
    ///
    /// Between two calls of `tick` it sleeps for `period`, so the rate also depends on the run time
    /// of `tick`.
    ///
    /// # Errors
    /// The host cannot create a thread.
    pub fn start(
        name: &str,
        period: Duration,
        begin: impl FnOnce() + Send + 'static,
        mut tick: impl FnMut() + Send + 'static,
    ) -> io::Result<Self> {
        let is_over = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&is_over);
        let run = move || {
            begin();
            while !ends.load(Ordering::Relaxed) {
                tick();
                thread::park_timeout(period);
            }
        };
        let thread = thread::Builder::new().name(name.to_owned()).spawn(run)?;
        Ok(Self { is_over, thread: Some(thread) })
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn ticker_ticks_until_it_is_dropped() {
        let (sender, ticks) = mpsc::channel();
        let begin_sender = sender.clone();
        let ticker = Ticker::start(
            "test",
            Duration::from_micros(50),
            move || begin_sender.send(0).unwrap(),
            move || sender.send(1).unwrap(),
        );
        assert_eq!(ticks.iter().take(4).collect::<Vec<_>>(), [0, 1, 1, 1]);
        drop(ticker.unwrap());
        // Both senders are dropped, so this ends
        assert!(ticks.iter().all(|tick| tick == 1));
    }

    #[test]
    fn ticker_with_a_long_period_is_dropped_at_once() {
        let (sender, ticks) = mpsc::channel();
        let hour = Duration::from_secs(3600);
        let ticker = Ticker::start("test", hour, || {}, move || sender.send(()).unwrap());
        ticks.recv().unwrap();
        drop(ticker.unwrap());
        assert!(ticks.recv().is_err());
    }
}
