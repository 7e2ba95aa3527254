//! Timers that send a signal to one thread.

#![expect(
    unsafe_code,
    reason = "the C library's timers are pointers, which Rust does not send between threads by itself"
)]

use std::io;
use std::time::Duration;

use libc::pid_t;
use nix::sys::signal::{SigEvent, SigevNotify, Signal};
use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;

/// A timer for one thread, on the monotonic clock. Any thread may set it.
#[derive(Debug)]
pub struct ThreadTimer(Timer);

// SAFETY: the pointer is the kernel's number of the timer in disguise, and POSIX lets every thread of the process use it.
unsafe impl Send for ThreadTimer {}

impl ThreadTimer {
    /// A timer that sends `signal` to thread `tid` of this process. It is not set yet.
    ///
    /// # Errors
    /// The host's reason.
    pub fn new(tid: pid_t, signal: libc::c_int) -> io::Result<Self> {
        let signal = Signal::try_from(signal)?;
        let notify = SigevNotify::SigevThreadId { signal, thread_id: tid, si_value: 0 };
        Ok(Timer::new(ClockId::CLOCK_MONOTONIC, SigEvent::new(notify)).map(Self)?)
    }

    /// Sends the signal at `at_ns` of the monotonic clock, and not when it was to be sent so far. A moment that is past is now.
    ///
    /// # Errors
    /// The host's reason.
    pub fn set(&mut self, at_ns: u64) -> io::Result<()> {
        // A time of 0 would switch it off.
        let at = TimeSpec::from_duration(Duration::from_nanos(at_ns.max(1)));
        Ok(self.0.set(Expiration::OneShot(at), TimerSetTimeFlags::TFD_TIMER_ABSTIME)?)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};

    use super::*;
    use crate::clock;
    use crate::thread::own_tid;

    #[test]
    fn timer_that_another_thread_sets_signals_its_own_thread_and_not_too_early() {
        std::thread::spawn(|| {
            let set = SigSet::from_iter([Signal::SIGUSR2]);
            pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&set), None).unwrap();
            let mut timer = ThreadTimer::new(own_tid(), Signal::SIGUSR2 as libc::c_int).unwrap();
            let began = Instant::now();
            let other = std::thread::spawn(move || {
                timer.set(clock::monotonic_ns() + 2_000_000).unwrap();
                timer
            });
            assert_eq!(set.wait().unwrap(), Signal::SIGUSR2);
            assert!(began.elapsed() >= Duration::from_millis(2));
            let mut timer = other.join().unwrap();
            timer.set(0).unwrap();
            assert_eq!(set.wait().unwrap(), Signal::SIGUSR2, "long past is now");
        })
        .join()
        .unwrap();
    }
}
