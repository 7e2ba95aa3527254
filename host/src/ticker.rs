//! A thread that does the same thing again and again, until it is dropped.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// See the module. When the drop returns the thread is gone.
#[derive(Debug)]
pub struct Ticker {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    /// Starts a thread of this name, which does `begin` once, and `tick` with `period` between.
    ///
    /// # Errors
    /// The host gives no thread.
    pub fn start(
        name: &str,
        period: Duration,
        begin: impl FnOnce() + Send + 'static,
        mut tick: impl FnMut() + Send + 'static,
    ) -> io::Result<Self> {
        let is_over = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&is_over);
        let live = move || {
            begin();
            while !ends.load(Ordering::Relaxed) {
                tick();
                thread::park_timeout(period);
            }
        };
        let thread = thread::Builder::new().name(name.to_owned()).spawn(live)?;
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
    fn ticker_ticks_until_it_is_dropped_and_not_once_more() {
        let (tell, told) = mpsc::channel();
        let tell_begin = tell.clone();
        let ticker = Ticker::start(
            "test",
            Duration::from_micros(50),
            move || tell_begin.send(0).unwrap(),
            move || tell.send(1).unwrap(),
        );
        assert_eq!(told.iter().take(4).collect::<Vec<_>>(), [0, 1, 1, 1]);
        drop(ticker.unwrap());
        // Both senders are gone, so this ends.
        assert!(told.iter().all(|tick| tick == 1));
    }

    #[test]
    fn ticker_that_is_asleep_for_long_is_dropped_at_once() {
        let (tell, told) = mpsc::channel();
        let hour = Duration::from_secs(3600);
        let ticker = Ticker::start("test", hour, || {}, move || tell.send(()).unwrap());
        told.recv().unwrap();
        drop(ticker.unwrap());
        assert!(told.recv().is_err());
    }
}
