//! The event loop: what the main thread waits for while a guest runs.
//!
//! Its sources are messages of the vCPU threads, termination, the timeout and the console. It
//! forwards console input itself, and returns everything else as an [`Event`].
//!
//! Termination is that of the process ([`host::termination`]). In a program that does not use it,
//! each event loop receives the termination signals itself.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::mpsc;
use std::time::Duration;

use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberOps};
use host::termination::{self, Cause};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

use crate::blocked_signals;
use crate::console::ConsoleInput;
use crate::error::VmmError;
use crate::vcpu::{EventSender, Message};

/// How often the event loop polls for the foreground of its terminal, in the background (ms).
const BACKGROUND_POLL_MS: i32 = 200;

/// The time limit of a wait without one (ms), see `epoll_wait(2)`.
const FOREVER_MS: i32 = -1;

/// An event during a run.
#[derive(Debug)]
pub enum Event {
    /// A vCPU thread or a hook sent a message.
    Vcpu(Message),
    /// The user ended the run, by Ctrl-C, a termination signal or the escape key.
    Interrupted,
    /// The timeout of this event loop expired.
    TimedOut,
    /// The deadline of the process passed.
    DeadlinePassed,
}

/// Waits for events. It keeps no state of the guest.
pub struct EventLoop {
    manager: EventManager<Sources>,
    id: event_manager::SubscriberId,
    wake: EventFd,
    sender: mpsc::Sender<Message>,
}

impl EventLoop {
    /// Creates an event loop with a timeout and a console, each optional. Block the signals before
    /// ([`BlockedSignals`](blocked_signals::BlockedSignals)).
    ///
    /// # Errors
    /// [`VmmError::Host`] if the process is out of file descriptors.
    pub fn new(timeout: Option<Duration>, console: Option<ConsoleInput>) -> Result<Self, VmmError> {
        let wake = EventFd::new(libc::EFD_NONBLOCK).map_err(VmmError::cannot("create an eventfd"))?;
        let (sender, messages) = mpsc::channel();
        let mut timer = TimerFd::new().map_err(VmmError::cannot("create a timer"))?;
        // timerfd_settime(2) disarms the timer for a value of 0.
        if let Some(timeout) = timeout {
            timer
                .reset(timeout.max(Duration::from_nanos(1)), None)
                .map_err(VmmError::cannot("set the timeout"))?;
        }
        let termination = Termination::new()?;
        let wake_copy = wake.try_clone().map_err(VmmError::cannot("copy an eventfd"))?;
        let pending = VecDeque::new();
        let sources =
            Sources { wake: wake_copy, messages, termination, timer, console, pending, refused: None };
        let mut manager = EventManager::new().map_err(VmmError::cannot("create an epoll instance"))?;
        let id = manager.add_subscriber(sources);
        match manager
            .subscriber_mut(id)
            .map_err(VmmError::cannot("access the sources of the event loop"))?
            .refused
            .take()
        {
            Some(refused) => Err(VmmError::cannot("watch a source of the event loop")(refused)),
            None => Ok(Self { manager, id, wake, sender }),
        }
    }

    /// Returns a sender of messages to this loop, for another thread.
    ///
    /// # Errors
    /// [`VmmError::Host`] if the process is out of file descriptors.
    pub fn event_sender(&self) -> Result<EventSender, VmmError> {
        let wake = self.wake.try_clone().map_err(VmmError::cannot("copy an eventfd"))?;
        Ok(EventSender::new(self.sender.clone(), wake))
    }

    /// Sets the timeout to `after` from now. Replaces an earlier one.
    ///
    /// # Errors
    /// [`VmmError::Host`] if the timer cannot be set.
    pub fn set_timeout(&mut self, after: Duration) -> Result<(), VmmError> {
        let sources = self
            .manager
            .subscriber_mut(self.id)
            .map_err(VmmError::cannot("access the sources of the event loop"))?;
        sources.timer.reset(after, None).map_err(VmmError::cannot("set the timeout"))
    }

    /// Waits for the next event.
    ///
    /// # Errors
    /// [`VmmError::Host`] if `epoll_wait(2)` fails.
    pub fn next_event(&mut self) -> Result<Event, VmmError> {
        loop {
            let sources = self
                .manager
                .subscriber_mut(self.id)
                .map_err(VmmError::cannot("access the sources of the event loop"))?;
            if let Some(event) = sources.pending.pop_front() {
                return Ok(event);
            }
            let is_in_background = sources.console.as_ref().is_some_and(ConsoleInput::poll_background);
            let limit_ms = if is_in_background { BACKGROUND_POLL_MS } else { FOREVER_MS };
            self.manager.run_with_timeout(limit_ms).map_err(VmmError::cannot("wait for events"))?;
        }
    }
}

/// How termination of the run is requested.
enum Termination {
    /// By the process's event loop. The descriptor stays readable.
    OfProcess(BorrowedFd<'static>),
    /// By signals to this event loop.
    Signals(SignalFd),
}

impl Termination {
    fn new() -> Result<Self, VmmError> {
        if let Some(fd) = termination::fd() {
            return Ok(Self::OfProcess(fd));
        }
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let created = SignalFd::with_flags(&blocked_signals::signals(), flags);
        created.map(Self::Signals).map_err(VmmError::cannot("create a signalfd"))
    }

    fn fd(&self) -> RawFd {
        match self {
            Self::OfProcess(fd) => fd.as_raw_fd(),
            Self::Signals(signals) => signals.as_raw_fd(),
        }
    }

    /// Returns the next request.
    fn next_request(&mut self) -> Option<Event> {
        match self {
            Self::OfProcess(_) => termination::requested().map(|cause| match cause {
                Cause::Interrupted => Event::Interrupted,
                Cause::TimedOut => Event::DeadlinePassed,
            }),
            Self::Signals(signals) => signals.read_signal().ok().flatten().map(|_| Event::Interrupted),
        }
    }
}

/// The sources of events, and the events not returned yet.
struct Sources {
    wake: EventFd,
    messages: mpsc::Receiver<Message>,
    termination: Termination,
    timer: TimerFd,
    console: Option<ConsoleInput>,
    pending: VecDeque<Event>,
    /// The error of a source that cannot be watched: `init` of the trait cannot return one.
    refused: Option<event_manager::Error>,
}

impl MutEventSubscriber for Sources {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let fd = events.fd();
        if let Some(console) = self.console.as_mut().filter(|console| console.owns(fd)) {
            if console.process(fd, ops).is_break() {
                self.pending.push_back(Event::Interrupted);
            }
        } else if fd == self.wake.as_raw_fd() {
            // Reset the counter before reading messages: a later message wakes the loop again.
            let _: io::Result<u64> = self.wake.read();
            self.pending.extend(self.messages.try_iter().map(Event::Vcpu));
        } else if fd == self.termination.fd() {
            if let Some(request) = self.termination.next_request() {
                self.pending.push_back(request);
            }
            if matches!(self.termination, Termination::OfProcess(_)) {
                // It stays readable, and one event is enough.
                let _ = ops.remove(Events::new_raw(fd, EventSet::IN));
            }
        } else if self.timer.wait().is_ok() {
            self.pending.push_back(Event::TimedOut);
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        for fd in [self.wake.as_raw_fd(), self.termination.fd(), self.timer.as_raw_fd()] {
            if let Err(refused) = ops.add(Events::new_raw(fd, EventSet::IN)) {
                self.refused = Some(refused);
            }
        }
        if let Some(Err(refused)) = self.console.as_mut().map(|console| console.register(ops)) {
            self.refused = Some(refused);
        }
    }
}
