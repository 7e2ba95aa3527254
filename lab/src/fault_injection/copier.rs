//! The copying thread: copies shadow records to the guest's records, with faults.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::FaultInjectionError;
use super::plan::{FaultCounts, FaultPlan};
use host::clock;
use host::cpus::Cpus;
use host::placement::place_beside;
use host::sync;
use host::ticker::Ticker;
use steal_time::publisher::record::GuestRecord;

/// Interval between two copies. A shorter one would take a whole CPU.
pub const PERIOD: Duration = Duration::from_micros(20);

/// The route of one vCPU's record, from its shadow to the guest.
#[derive(Debug)]
pub(super) struct Route {
    shadow: GuestRecord,
    state: Mutex<RouteState>,
}

#[derive(Debug)]
struct RouteState {
    plan: FaultPlan,
    guest: Option<GuestRecord>,
    is_paused: bool,
    /// The part of the shadow record's steal that was copied (ns).
    copied_ns: u64,
}

impl Route {
    pub(super) fn new(shadow: GuestRecord, plan: FaultPlan) -> Self {
        Self { shadow, state: Mutex::new(RouteState { plan, guest: None, is_paused: false, copied_ns: 0 }) }
    }

    /// Starts to copy to `record`, and updates it once. Its steal is at least `least_ns`.
    pub(super) fn set_target(&self, record: GuestRecord, least_ns: u64) {
        let mut state = self.lock();
        record.update(least_ns, state.take_new_steal(&self.shadow));
        state.guest = Some(record);
    }

    /// Stops copying. When this returns, no record of the guest is written.
    pub(super) fn clear_target(&self) {
        self.lock().guest = None;
    }

    /// Clears `preempted`, and writes nothing until [`resume`](Self::resume).
    pub(super) fn pause(&self) {
        let mut state = self.lock();
        state.is_paused = true;
        if let Some(guest) = &state.guest {
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
        let mut state = self.lock();
        if state.is_paused {
            return;
        }
        let preempted = state.plan.preempted(now_ns, self.shadow.preempted() != 0);
        let new_steal_ns = state.take_new_steal(&self.shadow);
        let Some(guest) = &state.guest else { return };
        if new_steal_ns > 0 {
            guest.add_steal(new_steal_ns);
        }
        match (guest.preempted() != 0, preempted) {
            (false, true) => guest.set_preempted(),
            (true, false) => drop(guest.clear_preempted()),
            _ => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, RouteState> {
        sync::lock(&self.state)
    }
}

impl RouteState {
    /// Returns the steal that was not copied yet (ns), and counts it as copied; 0 while the shadow
    /// record is being written.
    fn take_new_steal(&mut self, shadow: &GuestRecord) -> u64 {
        match shadow.try_steal_ns() {
            Some(steal) => steal.wrapping_sub(std::mem::replace(&mut self.copied_ns, steal)),
            None => 0,
        }
    }
}

/// The copying thread. Dropping it ends the thread.
#[derive(Debug)]
pub(super) struct Copier {
    routes: Arc<Mutex<Vec<Arc<Route>>>>,
    _ticker: Ticker,
}

impl Copier {
    /// Starts the thread, beside vCPUs that run on `vcpu_cpus`.
    ///
    /// # Errors
    /// [`FaultInjectionError::Thread`].
    pub(super) fn start(vcpu_cpus: &Cpus) -> Result<Self, FaultInjectionError> {
        let routes = Arc::new(Mutex::new(Vec::<Arc<Route>>::new()));
        let (shared, cpus) = (Arc::clone(&routes), vcpu_cpus.clone());
        // On a shared CPU the copies are later.
        let begin = move || {
            let _ = place_beside(&cpus, 2);
        };
        let tick = move || {
            let now_ns = clock::monotonic_ns();
            for route in &*sync::lock(&shared) {
                route.copy(now_ns);
            }
        };
        let ticker = Ticker::start("copier", PERIOD, begin, tick).map_err(FaultInjectionError::Thread)?;
        Ok(Self { routes, _ticker: ticker })
    }

    /// Starts to copy `route`.
    pub(super) fn add(&self, route: Arc<Route>) {
        self.lock().push(route);
    }

    /// Stops copying `route`, before it returns.
    pub(super) fn remove(&self, route: &Arc<Route>) {
        self.lock().retain(|other| !Arc::ptr_eq(other, route));
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Route>>> {
        sync::lock(&self.routes)
    }
}
