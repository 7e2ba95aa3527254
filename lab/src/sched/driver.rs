//! The driver thread: times the slices that no vCPU thread times, and waits for doorbells.
//!
//! With `class` it times all slices, in `SCHED_DEADLINE`: in `SCHED_FIFO` of any priority, the
//! kernel's fair server preempts it for 50 ms a second while a thread of the fair class starves.
//! With `deschedule` it needs no privilege.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

use super::dispatcher::Dispatcher;
use super::mechanism::MechanismKind;
use host::clock;
use host::rate::Coalescer;
use host::thread::{Class, set_own_class};
use host::thread_times::RunningTime;
use vmm::vcpu::control::own_times;

/// A wake-up with its dispatch takes 20 us; doorbells cause many.
const PREFERRED: Class = Class::Deadline { runtime_ns: 250_000, period_ns: 400_000 };
/// The fallback if the host refuses a deadline, which it does for pinned threads.
const FALLBACK: Class = Class::Fifo(90);

/// Time (ns) after the end of a slice at which the driver ends it, if the vCPU thread has not. It
/// is also the driver's usual period.
const SLACK_NS: u64 = 20_000_000;

/// A guest may ring its doorbell without end. The driver takes the CPU from all other classes, so
/// doorbells within this time after a run are served together.
const INTERVAL_NS: u64 = 100_000;

/// The longest sleep between two checks for starved vCPUs. If it lasts for longer, the process was
/// stopped.
const MAX_SLEEP: Duration = Duration::from_millis(100);

/// The driver thread.
#[derive(Debug)]
pub(super) struct Driver {
    is_over: Arc<AtomicBool>,
    wake: EventFd,
    thread: JoinHandle<()>,
    class: &'static str,
}

impl Driver {
    /// Starts the thread, which delivers the first events before this returns.
    ///
    /// # Errors
    /// The host has no thread, timer or event file left.
    pub(super) fn start(
        dispatcher: Arc<Dispatcher>,
        doorbells: Vec<Option<EventFd>>,
        kind: MechanismKind,
    ) -> io::Result<Self> {
        let is_over = Arc::new(AtomicBool::new(false));
        let wake = EventFd::new(libc::EFD_NONBLOCK)?;
        let ends = Arc::clone(&is_over);
        let wakers = doorbells.into_iter().flatten().chain([wake.try_clone()?]).collect();
        let mut alarm = Alarm::new(wakers)?;
        let (send_class, class) = mpsc::channel();
        let run = move || {
            // First of all: beside real-time vCPU threads it might not get a CPU to raise its
            // class.
            let class = if kind == MechanismKind::Class { raise_class() } else { "fair" };
            dispatcher.begin();
            let _ = send_class.send(class);
            if kind == MechanismKind::Deschedule {
                // It inherited the class of its creator, which may exceed the vCPU threads'.
                let _ = set_own_class(Class::Fair);
            }
            drive(&dispatcher, &mut alarm, &ends, kind);
        };
        let thread = thread::Builder::new().name("driver".to_owned()).spawn(run)?;
        let class = class.recv().unwrap_or("none");
        Ok(Self { is_over, wake, thread, class })
    }

    /// Ends the thread; returns its scheduling class.
    pub(super) fn finish(self) -> &'static str {
        self.is_over.store(true, Ordering::Relaxed);
        let _ = self.wake.write(1);
        let _ = self.thread.join();
        self.class
    }
}

fn raise_class() -> &'static str {
    if set_own_class(PREFERRED).is_ok() {
        "deadline"
    } else if set_own_class(FALLBACK).is_ok() {
        "fifo"
    } else {
        "fair"
    }
}

fn drive(dispatcher: &Dispatcher, alarm: &mut Alarm, is_over: &AtomicBool, kind: MechanismKind) {
    let mut time = RunningTime::since(own_times());
    while !is_over.load(Ordering::Relaxed) {
        let due = match kind {
            MechanismKind::Class => dispatcher.next_due(),
            MechanismKind::Deschedule => dispatcher.next_untimed(SLACK_NS),
        };
        alarm.sleep_until(due);
        time.add_wait(own_times(), MAX_SLEEP);
        dispatcher.dispatch(time.stopped_ns());
    }
}

/// A sleep that a timer or an event file ends.
struct Alarm {
    epoll: Epoll,
    timer: TimerFd,
    wakers: Vec<EventFd>,
    rate: Coalescer,
}

impl Alarm {
    fn new(wakers: Vec<EventFd>) -> io::Result<Self> {
        let (epoll, timer) = (Epoll::new()?, TimerFd::new()?);
        let fds = wakers.iter().map(AsRawFd::as_raw_fd).chain([timer.as_raw_fd()]);
        for fd in fds {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0))?;
        }
        Ok(Self { epoll, timer, wakers, rate: Coalescer::new(INTERVAL_NS) })
    }

    /// Sleeps until `due_ns` (`CLOCK_MONOTONIC`) or an event, for at most [`MAX_SLEEP`].
    fn sleep_until(&mut self, due_ns: u64) {
        let left = Duration::from_nanos(due_ns.saturating_sub(clock::monotonic_ns())).min(MAX_SLEEP);
        if left.is_zero() || self.timer.reset(left, None).is_err() {
            return;
        }
        let mut events = [EpollEvent::default(); 4];
        // After an interruption the caller finds nothing due and sleeps again.
        let _ = self.epoll.wait(-1, &mut events);
        let now_ns = clock::monotonic_ns();
        // A slice that ends is not delayed, a doorbell is
        let delay_ns = self.rate.delay_ns(now_ns).min(due_ns.saturating_sub(now_ns));
        if delay_ns > 0 {
            thread::sleep(Duration::from_nanos(delay_ns));
        }
        self.rate.ran(clock::monotonic_ns());
        for waker in &self.wakers {
            // Before the dispatch, so that a later event ends the next sleep.
            let _ = waker.read();
        }
    }
}
