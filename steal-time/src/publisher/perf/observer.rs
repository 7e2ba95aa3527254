//! The observer: a thread that wakes at each switch of a vCPU thread, and stores that vCPU's
//! `preempted`.
//!
//! It has an event loop of its own, since it must be quick: on spare CPUs it gets a real-time class
//! if the host allows that. Without spare CPUs it preempts no thread (see [`super`]).

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::switch_reader::SwitchReader;
use host::cpus::Cpus;
use host::perf::PerfError;
use host::placement::{Placement, place_beside};
use host::sync::lock;

/// The observer runs at most once in this time, however often the vCPUs are switched: a run takes
/// the CPU from all tasks of the fair class. After a quiet interval it runs at once.
const INTERVAL: Duration = Duration::from_micros(100);

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> PerfError {
    move |source| PerfError::Failed { what, source }
}

/// A command to the observer's thread.
#[derive(Debug)]
enum Command {
    Watch(Arc<SwitchReader>),
    /// Stop watching the reader with this descriptor, which stays open until the answer.
    Unwatch(RawFd, mpsc::Sender<()>),
    Stop,
}

/// A running observer thread. Dropping it stops and joins the thread.
#[derive(Debug)]
pub struct Observer {
    commands: Mutex<mpsc::Sender<Command>>,
    wake: EventFd,
    /// Set once the thread has placed itself.
    placement: Arc<OnceLock<Placement>>,
    thread: Option<JoinHandle<()>>,
}

impl Observer {
    /// Starts the observer beside vCPUs that use `vcpu_cpus`. It watches no reader yet.
    pub(super) fn start(vcpu_cpus: &Cpus) -> Result<Self, PerfError> {
        let wake = EventFd::new(libc::EFD_NONBLOCK).map_err(failed("create an eventfd"))?;
        let (commands, inbox) = mpsc::channel();
        let wake_read = wake.try_clone().map_err(failed("duplicate an eventfd"))?;
        let placement = Arc::new(OnceLock::new());
        let mut manager = EventManager::new()
            .map_err(|error| failed("create an epoll instance")(io::Error::other(error.to_string())))?;
        let is_stopped = Arc::new(AtomicBool::new(false));
        manager.add_subscriber(ObserverLoop {
            wake: wake_read,
            inbox,
            readers: HashMap::new(),
            is_stopped: Arc::clone(&is_stopped),
        });
        let (cpus, placed) = (vcpu_cpus.clone(), Arc::clone(&placement));
        let run = move || {
            let _ = placed.set(place_beside(&cpus, 1));
            while !is_stopped.load(Ordering::Relaxed) && manager.run().is_ok() {
                // Switches meanwhile are observed together, by the next run
                thread::sleep(INTERVAL);
            }
        };
        let thread = thread::Builder::new().name("observer".to_owned()).spawn(run);
        let thread = Some(thread.map_err(failed("start the observer thread"))?);
        Ok(Self { commands: Mutex::new(commands), wake, placement, thread })
    }

    /// Returns the observer's limit on this host, for the user, if it has one.
    pub(super) fn limits(&self) -> Option<String> {
        let limit = match self.placement.get()? {
            Placement::SpareFifo => return None,
            Placement::SpareFair => {
                "the observer has no real-time class, so on busy CPUs it is late by time slices (grant \
                 CAP_SYS_NICE or raise RLIMIT_RTPRIO)"
            }
            Placement::SharedBatch => {
                "the observer has no spare CPU, so preemption by other tasks is seen late, by time \
                 slices (leave it one)"
            }
        };
        Some(limit.to_owned())
    }

    /// Starts to watch a reader.
    pub(super) fn watch(&self, reader: Arc<SwitchReader>) -> Result<(), PerfError> {
        self.send(Command::Watch(reader)).map_err(failed("send to the observer thread"))
    }

    /// Stops watching a reader. On return the observer does not read it any more.
    pub(super) fn unwatch(&self, reader: &SwitchReader) {
        let (answer, answered) = mpsc::channel();
        if self.send(Command::Unwatch(reader.as_raw_fd(), answer)).is_ok() {
            // An error means that the observer has ended, and watches nothing
            let _ = answered.recv();
        }
    }

    fn send(&self, command: Command) -> io::Result<()> {
        lock(&self.commands).send(command).map_err(io::Error::other)?;
        self.wake.write(1)
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        // It fails only if the thread has ended
        let _ = self.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The subscriber of the observer's event loop.
struct ObserverLoop {
    wake: EventFd,
    inbox: mpsc::Receiver<Command>,
    readers: HashMap<RawFd, Arc<SwitchReader>>,
    is_stopped: Arc<AtomicBool>,
}

impl ObserverLoop {
    fn execute(&mut self, command: Command, ops: &mut EventOps<'_>) {
        match command {
            Command::Watch(reader) => {
                if ops.add(Events::new(&*reader, EventSet::IN)).is_ok() {
                    self.readers.insert(reader.as_raw_fd(), reader);
                }
            }
            Command::Unwatch(fd, answer) => {
                if let Some(reader) = self.readers.remove(&fd) {
                    let _ = ops.remove(Events::new(&*reader, EventSet::IN));
                }
                // The requester may have gone; ignore send errors
                let _ = answer.send(());
            }
            Command::Stop => self.is_stopped.store(true, Ordering::Relaxed),
        }
    }
}

impl MutEventSubscriber for ObserverLoop {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if let Some(reader) = self.readers.get(&events.fd()) {
            reader.observe();
        } else if events.fd() == self.wake.as_raw_fd() {
            // Reset the counter first: a command that is sent afterwards wakes the loop again
            let _ = self.wake.read();
            while let Ok(command) = self.inbox.try_recv() {
                self.execute(command, ops);
            }
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        // Without it no command would arrive: the thread stops, and senders get an error
        if ops.add(Events::new(&self.wake, EventSet::IN)).is_err() {
            self.is_stopped.store(true, Ordering::Relaxed);
        }
    }
}
