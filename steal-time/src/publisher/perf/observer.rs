//! The observer: the thread that is woken by each switch of a vCPU's thread.
//!
//! It is an event loop of its own, not a part of the main one, because it must be quick: on CPUs of its own it has a
//! real-time class, where the host allows it. Without them it preempts nobody (see [`super`]).

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::thread::{self, JoinHandle};

use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::desk::Desk;
use host::aside::{Standing, step_aside};
use host::cpus::Cpus;

/// The observer cannot be started, or cannot watch one more.
#[derive(Debug, thiserror::Error)]
#[error("Cannot {what} for the perf publisher (too many open files or threads? try --publisher park)")]
pub struct ObserverError {
    what: &'static str,
    source: io::Error,
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> ObserverError {
    move |source| ObserverError { what, source }
}

/// What the observer is asked for.
#[derive(Debug)]
enum Order {
    Watch(Arc<Desk>),
    /// The one with this descriptor, which is open until it is answered.
    Forget(RawFd, mpsc::Sender<()>),
    End,
}

/// See the module. Dropping it ends the thread.
#[derive(Debug)]
pub struct Observer {
    orders: Mutex<mpsc::Sender<Order>>,
    wake: EventFd,
    /// Known as soon as it has come to itself.
    standing: Arc<OnceLock<Standing>>,
    thread: Option<JoinHandle<()>>,
}

impl Observer {
    /// Starts it, beside vCPUs that use `vcpu_cpus`. It watches nobody yet.
    pub(super) fn start(vcpu_cpus: &Cpus) -> Result<Self, ObserverError> {
        let wake = EventFd::new(libc::EFD_NONBLOCK).map_err(failed("make an eventfd"))?;
        let (orders, inbox) = mpsc::channel();
        let waken = wake.try_clone().map_err(failed("copy an eventfd"))?;
        let standing = Arc::new(OnceLock::new());
        let mut manager = EventManager::new()
            .map_err(|error| failed("make an epoll")(io::Error::other(error.to_string())))?;
        let is_over = Arc::new(AtomicBool::new(false));
        manager.add_subscriber(Watch {
            wake: waken,
            inbox,
            desks: HashMap::new(),
            is_over: Arc::clone(&is_over),
        });
        let (cpus, stands) = (vcpu_cpus.clone(), Arc::clone(&standing));
        let live = move || {
            let _ = stands.set(step_aside(&cpus, 1));
            while !is_over.load(Ordering::Relaxed) && manager.run().is_ok() {}
        };
        let thread = thread::Builder::new().name("observer".to_owned()).spawn(live);
        let thread = Some(thread.map_err(failed("start a thread"))?);
        Ok(Self { orders: Mutex::new(orders), wake, standing, thread })
    }

    /// What it cannot do here.
    pub(super) fn limits(&self) -> Option<String> {
        let limit = match self.standing.get()? {
            Standing::First => return None,
            Standing::InTurn => {
                "the observer has no real-time class, so where its CPUs are busy it is late by time slices (grant \
                 CAP_SYS_NICE or raise RLIMIT_RTPRIO)"
            }
            Standing::Among => {
                "no CPU is left to the observer, so preemption by strangers is seen late, by time slices (leave it one by \
                 --cpus)"
            }
        };
        Some(limit.to_owned())
    }

    /// Watches one more.
    pub(super) fn watch(&self, desk: Arc<Desk>) -> Result<(), ObserverError> {
        self.order(Order::Watch(desk)).map_err(failed("reach the observer"))
    }

    /// Watches one less. When this returns it is not watched any more.
    pub(super) fn forget(&self, desk: &Desk) {
        let (answer, answered) = mpsc::channel();
        if self.order(Order::Forget(desk.as_raw_fd(), answer)).is_ok() {
            // No answer: the observer has ended, and watches nobody.
            let _ = answered.recv();
        }
    }

    fn order(&self, order: Order) -> io::Result<()> {
        let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        orders.send(order).map_err(io::Error::other)?;
        self.wake.write(1)
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        // It fails only for a thread that has ended.
        let _ = self.order(Order::End);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the observer's loop waits for.
struct Watch {
    wake: EventFd,
    inbox: mpsc::Receiver<Order>,
    desks: HashMap<RawFd, Arc<Desk>>,
    is_over: Arc<AtomicBool>,
}

impl Watch {
    fn carry_out(&mut self, order: Order, ops: &mut EventOps<'_>) {
        match order {
            Order::Watch(desk) => {
                if ops.add(Events::new(&*desk, EventSet::IN)).is_ok() {
                    self.desks.insert(desk.as_raw_fd(), desk);
                }
            }
            Order::Forget(fd, answer) => {
                if let Some(desk) = self.desks.remove(&fd) {
                    let _ = ops.remove(Events::new(&*desk, EventSet::IN));
                }
                // Who does not wait any more needs no answer.
                let _ = answer.send(());
            }
            Order::End => self.is_over.store(true, Ordering::Relaxed),
        }
    }
}

impl MutEventSubscriber for Watch {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if let Some(desk) = self.desks.get(&events.fd()) {
            desk.observe();
        } else if events.fd() == self.wake.as_raw_fd() {
            // The counter goes first: what is ordered after this read wakes the loop again.
            let _ = self.wake.read();
            while let Ok(order) = self.inbox.try_recv() {
                self.carry_out(order, ops);
            }
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        // Without it no order would ever arrive: the thread ends, and whoever orders is told.
        if ops.add(Events::new(&self.wake, EventSet::IN)).is_err() {
            self.is_over.store(true, Ordering::Relaxed);
        }
    }
}
