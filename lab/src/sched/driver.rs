//! The driver: the thread that times what no vCPU thread times for itself, and hears the doorbells.
//!
//! With `class` it sees to every turn. It is of the deadline class then: in the FIFO class, of whatever priority, the kernel's
//! fair server comes before it for 50 ms a second where anybody of the fair class is starved. With `park` it needs no right.

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
use host::thread::{Class, set_own_class};

/// A wake-up and what follows takes some 20 us; where guests ring, there are many.
const FIRST: Class = Class::Deadline { runtime_ns: 250_000, period_ns: 400_000 };
/// Where a deadline is refused: to threads that are pinned, for one.
const SECOND: Class = Class::Fifo(90);

/// A vCPU thread sees to the end of its own turn; if it has not by so much later (ns), the driver does. It wakes as often as that.
const SLACK: u64 = 20_000_000;

/// It looks at least so often, whether everybody gets to run.
const LONGEST_SLEEP: Duration = Duration::from_millis(100);

/// See the module.
#[derive(Debug)]
pub(super) struct Driver {
    is_over: Arc<AtomicBool>,
    wake: EventFd,
    thread: JoinHandle<()>,
    class: &'static str,
}

impl Driver {
    /// Starts it. It asks the policy for the first time at once.
    pub(super) fn start(
        dispatcher: Arc<Dispatcher>,
        bells: Vec<Option<EventFd>>,
        kind: MechanismKind,
    ) -> io::Result<Self> {
        let is_over = Arc::new(AtomicBool::new(false));
        let wake = EventFd::new(libc::EFD_NONBLOCK)?;
        let ends = Arc::clone(&is_over);
        let rung = bells.into_iter().flatten().chain([wake.try_clone()?]).collect();
        let mut alarm = Alarm::new(rung)?;
        let (tell, told) = mpsc::channel();
        let live = move || {
            // Before any vCPU thread is of a real-time class: afterwards it might not get a CPU to change its own on.
            let class = if kind == MechanismKind::Class { take_precedence() } else { "fair" };
            dispatcher.begin();
            let _ = tell.send(class);
            if kind == MechanismKind::Deschedule {
                // It has begun in the class of whoever has started it, which may come before the vCPU threads'.
                let _ = set_own_class(Class::Fair);
            }
            drive(&dispatcher, &mut alarm, &ends, kind);
        };
        let thread = thread::Builder::new().name("driver".to_owned()).spawn(live)?;
        let class = told.recv().unwrap_or("none");
        Ok(Self { is_over, wake, thread, class })
    }

    /// Ends it, and says how it was scheduled.
    pub(super) fn finish(self) -> &'static str {
        self.is_over.store(true, Ordering::Relaxed);
        let _ = self.wake.write(1);
        let _ = self.thread.join();
        self.class
    }
}

fn take_precedence() -> &'static str {
    if set_own_class(FIRST).is_ok() {
        "deadline"
    } else if set_own_class(SECOND).is_ok() {
        "fifo"
    } else {
        "fair"
    }
}

fn drive(dispatcher: &Dispatcher, alarm: &mut Alarm, is_over: &AtomicBool, kind: MechanismKind) {
    while !is_over.load(Ordering::Relaxed) {
        let due = match kind {
            MechanismKind::Class => dispatcher.next_due(),
            MechanismKind::Deschedule => dispatcher.next_untimed(SLACK),
        };
        alarm.sleep_until(due);
        dispatcher.attend();
    }
}

/// What ends the driver's sleep: time, or somebody who rings.
struct Alarm {
    epoll: Epoll,
    timer: TimerFd,
    rung: Vec<EventFd>,
}

impl Alarm {
    fn new(rung: Vec<EventFd>) -> io::Result<Self> {
        let (epoll, timer) = (Epoll::new()?, TimerFd::new()?);
        let fds = rung.iter().map(AsRawFd::as_raw_fd).chain([timer.as_raw_fd()]);
        for fd in fds {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0))?;
        }
        Ok(Self { epoll, timer, rung })
    }

    /// Sleeps until `due_ns` of the monotonic clock, or until somebody rings, or for [`LONGEST_SLEEP`].
    fn sleep_until(&mut self, due_ns: u64) {
        let left = Duration::from_nanos(due_ns.saturating_sub(clock::monotonic_ns())).min(LONGEST_SLEEP);
        if left.is_zero() || self.timer.reset(left, None).is_err() {
            return;
        }
        let mut events = [EpollEvent::default(); 4];
        // Interrupted or not, what is due is found out by looking.
        let _ = self.epoll.wait(-1, &mut events);
        for bell in &self.rung {
            // The counter goes first: what rings after this read wakes the thread again.
            let _ = bell.read();
        }
    }
}
