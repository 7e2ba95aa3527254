//! One-shot timers that send a signal to one thread (`timer_create(2)`, `SIGEV_THREAD_ID`).

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

/// A timer on `CLOCK_MONOTONIC` that signals one thread. Any thread may set it; dropping it deletes
/// it.
#[derive(Debug)]
pub struct ThreadTimer(Timer);

// SAFETY: `timer_t` is declared as a pointer, but holds the kernel's ID of the timer, which nothing
// dereferences. POSIX lets any thread of the process set or delete a timer. `set` takes `&mut
// self`, so that two calls never run at once.
unsafe impl Send for ThreadTimer {}

impl ThreadTimer {
    /// Creates a timer that sends `signal` to thread `tid` of this process. It is not armed yet.
    ///
    /// # Errors
    /// `signal` is not a standard signal, or `timer_create(2)` failed.
    pub fn new(tid: pid_t, signal: libc::c_int) -> io::Result<Self> {
        let signal = Signal::try_from(signal)?;
        let notify = SigevNotify::SigevThreadId { signal, thread_id: tid, si_value: 0 };
        Ok(Timer::new(ClockId::CLOCK_MONOTONIC, SigEvent::new(notify)).map(Self)?)
    }

    /// Arms the timer for the time `at_ns` of the monotonic clock (ns), in place of any earlier
    /// setting.
    ///
    /// A time in the past fires at once.
    ///
    /// # Errors
    /// `timer_settime(2)` failed.
    pub fn set(&mut self, at_ns: u64) -> io::Result<()> {
        // 0 would disarm the timer
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
    fn timer_set_by_another_thread_signals_its_own_thread_and_not_too_early() {
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
            assert_eq!(set.wait().unwrap(), Signal::SIGUSR2, "a time in the past fires at once");
        })
        .join()
        .unwrap();
    }
}
