//! The copying thread: what the publisher inside has written, into the guest's records, with faults.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::plan::{FaultCounts, Plan};
use host::clock;
use host::cpus::Cpus;
use host::placement::place_beside;
use host::ticker::Ticker;
use steal_time::publisher::record::GuestRecord;

/// Between two copies. Shorter ones would take a whole CPU.
pub const PERIOD: Duration = Duration::from_micros(20);

/// The copying thread cannot be started.
#[derive(Debug, thiserror::Error)]
#[error("Cannot start the thread that makes a publisher faulty")]
pub struct CopierError(#[source] io::Error);

/// The way of one vCPU's record, from the publisher inside to the guest.
#[derive(Debug)]
pub(super) struct Route {
    shadow: GuestRecord,
    way: Mutex<Way>,
}

#[derive(Debug)]
struct Way {
    plan: Plan,
    guest: Option<GuestRecord>,
    is_paused: bool,
    /// Of the inner record's steal, what the guest has been told (ns).
    told_ns: u64,
}

impl Route {
    pub(super) fn new(shadow: GuestRecord, plan: Plan) -> Self {
        Self { shadow, way: Mutex::new(Way { plan, guest: None, is_paused: false, told_ns: 0 }) }
    }

    /// From now on it leads to `record`, which is updated once; its steal is `least_ns` at least.
    pub(super) fn lead_to(&self, record: GuestRecord, least_ns: u64) {
        let mut way = self.lock();
        record.update(least_ns, way.untold(&self.shadow));
        way.guest = Some(record);
    }

    /// It leads nowhere: when this returns no record of the guest's is written.
    pub(super) fn lead_nowhere(&self) {
        self.lock().guest = None;
    }

    /// Nothing is written until [`rise`](Self::resume), and the byte is clear.
    pub(super) fn pause(&self) {
        let mut way = self.lock();
        way.is_paused = true;
        if let Some(guest) = &way.guest {
            guest.clear_preempted();
        }
    }

    pub(super) fn resume(&self) {
        self.lock().is_paused = false;
        self.copy(clock::monotonic_ns());
    }

    pub(super) fn counts(&self) -> FaultCounts {
        self.lock().plan.counts()
    }

    fn copy(&self, now_ns: u64) {
        let mut way = self.lock();
        if way.is_paused {
            return;
        }
        let says = way.plan.says(now_ns, self.shadow.preempted() != 0);
        let untold_ns = way.untold(&self.shadow);
        let Some(guest) = &way.guest else { return };
        if untold_ns > 0 {
            guest.add_steal(untold_ns);
        }
        match (guest.preempted() != 0, says) {
            (false, true) => guest.set_preempted(),
            (true, false) => drop(guest.clear_preempted()),
            _ => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, Way> {
        self.way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Way {
    /// Takes all steal of the inner record for told, and gives what was not. While it is being written there is none.
    fn untold(&mut self, shadow: &GuestRecord) -> u64 {
        match shadow.try_steal_ns() {
            Some(steal) => steal.wrapping_sub(std::mem::replace(&mut self.told_ns, steal)),
            None => 0,
        }
    }
}

/// See the module. Dropping it ends the thread.
#[derive(Debug)]
pub(super) struct Copier {
    routes: Arc<Mutex<Vec<Arc<Route>>>>,
    _ticker: Ticker,
}

impl Copier {
    /// Beside vCPUs that use `vcpu_cpus`.
    pub(super) fn start(vcpu_cpus: &Cpus) -> Result<Self, CopierError> {
        let routes = Arc::new(Mutex::new(Vec::<Arc<Route>>::new()));
        let (mine, cpus) = (Arc::clone(&routes), vcpu_cpus.clone());
        // Wherever it stands it does its work; the copy may be later.
        let begin = move || {
            let _ = place_beside(&cpus, 2);
        };
        let tick = move || {
            let now_ns = clock::monotonic_ns();
            for route in &*mine.lock().unwrap_or_else(PoisonError::into_inner) {
                route.copy(now_ns);
            }
        };
        let ticker = Ticker::start("copier", PERIOD, begin, tick).map_err(CopierError)?;
        Ok(Self { routes, _ticker: ticker })
    }

    pub(super) fn add(&self, route: Arc<Route>) {
        self.lock().push(route);
    }

    /// When this returns it is not copied any more.
    pub(super) fn remove(&self, route: &Arc<Route>) {
        self.lock().retain(|other| !Arc::ptr_eq(other, route));
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Route>>> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
