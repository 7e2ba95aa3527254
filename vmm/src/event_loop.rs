//! The event loop: the main thread while a guest runs.
//!
//! It waits for vCPU threads to tell something, for Ctrl-C, and for the time-out; it keeps no state of the guest. What
//! happened it hands to its caller, one [`Event`] at a time. What arrives at the console it passes on itself.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::mpsc;
use std::time::Duration;

use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberOps};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

use crate::console::Console;
use crate::vcpu::{EventSender, Message};

/// What can happen.
#[derive(Debug)]
pub enum Event {
    /// A vCPU thread has told this.
    Vcpu(Message),
    /// The user wants the run to end (Ctrl-C, a termination signal, or the escape key).
    Interrupted,
    /// The time is over.
    TimedOut,
}

/// The loop cannot be made, or cannot wait.
#[derive(Debug, thiserror::Error)]
#[error("The event loop cannot {what}: {why}")]
pub struct EventLoopError {
    what: &'static str,
    why: String,
}

fn failed<E: ToString>(what: &'static str) -> impl Fn(E) -> EventLoopError {
    move |error| EventLoopError { what, why: error.to_string() }
}

/// Keeps Ctrl-C and termination signals for the event loop, in the calling thread and in those it will start.
///
/// # Errors
/// The host's reason.
pub fn block_signals() -> Result<(), EventLoopError> {
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&signals()), None).map_err(failed("block signals"))
}

fn signals() -> SigSet {
    SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP])
}

/// See the module.
pub struct EventLoop {
    manager: EventManager<Sources>,
    id: event_manager::SubscriberId,
    wake: EventFd,
    sender: mpsc::Sender<Message>,
}

impl EventLoop {
    /// A loop that ends after `timeout`, if there is one, and serves `console`, if there is one. Signals are blocked
    /// already.
    ///
    /// # Errors
    /// [`EventLoopError`], out of file descriptors most likely.
    pub fn new(timeout: Option<Duration>, console: Option<Console>) -> Result<Self, EventLoopError> {
        let wake = EventFd::new(libc::EFD_NONBLOCK).map_err(failed("make an eventfd"))?;
        let (sender, inbox) = mpsc::channel();
        let mut timer = TimerFd::new().map_err(failed("make a timer"))?;
        // A timer set to nothing is a timer switched off.
        if let Some(timeout) = timeout {
            timer.reset(timeout.max(Duration::from_nanos(1)), None).map_err(failed("set a timer"))?;
        }
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let signals = SignalFd::with_flags(&signals(), flags).map_err(failed("make a signalfd"))?;
        let wake_copy = wake.try_clone().map_err(failed("copy an eventfd"))?;
        let pending = VecDeque::new();
        let sources = Sources { wake: wake_copy, inbox, signals, timer, console, pending, refused: None };
        let mut manager = EventManager::new().map_err(failed("make an epoll"))?;
        let id = manager.add_subscriber(sources);
        match manager.subscriber_mut(id).map_err(failed("find its sources"))?.refused.take() {
            Some(refused) => Err(failed("watch a source")(refused)),
            None => Ok(Self { manager, id, wake, sender }),
        }
    }

    /// A way for one more thread to send messages to this loop.
    ///
    /// # Errors
    /// [`EventLoopError`], out of file descriptors most likely.
    pub fn event_sender(&self) -> Result<EventSender, EventLoopError> {
        let wake = self.wake.try_clone().map_err(failed("copy an eventfd"))?;
        Ok(EventSender::new(self.sender.clone(), wake))
    }

    /// Lets the time be over `after` from now, whatever it was to be.
    ///
    /// # Errors
    /// [`EventLoopError`] when the timer cannot be set.
    pub fn time_out(&mut self, after: Duration) -> Result<(), EventLoopError> {
        let sources = self.manager.subscriber_mut(self.id).map_err(failed("find its sources"))?;
        sources.timer.reset(after, None).map_err(failed("set a timer"))
    }

    /// Waits for the next event.
    ///
    /// # Errors
    /// [`EventLoopError`] when waiting fails.
    pub fn next_event(&mut self) -> Result<Event, EventLoopError> {
        loop {
            let sources = self.manager.subscriber_mut(self.id).map_err(failed("find its sources"))?;
            if let Some(event) = sources.pending.pop_front() {
                return Ok(event);
            }
            self.manager.run().map_err(failed("wait"))?;
        }
    }
}

/// What the loop waits for, and what has happened there.
struct Sources {
    wake: EventFd,
    inbox: mpsc::Receiver<Message>,
    signals: SignalFd,
    timer: TimerFd,
    console: Option<Console>,
    pending: VecDeque<Event>,
    /// Why a source could not be watched, if one could not: the trait gives `init` no way to say so.
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
            // The counter goes first: what is sent after this read wakes the loop again.
            let _: io::Result<u64> = self.wake.read();
            self.pending.extend(self.inbox.try_iter().map(Event::Vcpu));
        } else if fd == self.signals.as_raw_fd() {
            while let Ok(Some(_)) = self.signals.read_signal() {
                self.pending.push_back(Event::Interrupted);
            }
        } else if self.timer.wait().is_ok() {
            self.pending.push_back(Event::TimedOut);
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        for fd in [self.wake.as_raw_fd(), self.signals.as_raw_fd(), self.timer.as_raw_fd()] {
            if let Err(refused) = ops.add(Events::new_raw(fd, EventSet::IN)) {
                self.refused = Some(refused);
            }
        }
        if let Some(Err(refused)) = self.console.as_mut().map(|console| console.register(ops)) {
            self.refused = Some(refused);
        }
    }
}
