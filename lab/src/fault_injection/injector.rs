//! The fault injector: a publisher that copies the records of another one, with faults.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use protocol::VcpuId;

use super::copier::{Copier, Route};
use super::plan::{FaultCounts, FaultPlan};
use super::{FaultInjectionError, Faults};
use host::cpus::Cpus;
use host::sync;
use steal_time::StealTimeError;
use steal_time::bpf;
use steal_time::host_vm::HostVm;
use steal_time::publisher::record::{GuestRecord, RECORD_SIZE};
use steal_time::publisher::{Counts, Inits, Publication, Publisher, PublisherKind, UnloggedPages};

/// A publisher that copies the shadow records of another one, with faults.
#[derive(Debug)]
pub struct FaultInjector {
    inner: Arc<dyn Publisher>,
    faults: Faults,
    shadow: Arc<dyn HostVm>,
    vm: Arc<dyn HostVm>,
    copier: Copier,
    pages: UnloggedPages,
    routes: Mutex<BTreeMap<VcpuId, Arc<Route>>>,
}

impl FaultInjector {
    /// The faults injected for `vcpu` so far; `None` if it never attached.
    pub fn counts(&self, vcpu: VcpuId) -> Option<FaultCounts> {
        let routes = sync::lock(&self.routes);
        routes.get(&vcpu).map(|route| route.counts())
    }

    /// Creates an injector that copies the records of `inner`, which publishes to `shadow`, to the
    /// records of `vm`, with `faults`. The vCPUs run on `cpus`.
    ///
    /// # Errors
    /// [`FaultInjectionError::Thread`].
    pub fn new(
        inner: Arc<dyn Publisher>,
        shadow: Arc<dyn HostVm>,
        vm: Arc<dyn HostVm>,
        cpus: &Cpus,
        faults: Faults,
    ) -> Result<Self, FaultInjectionError> {
        let (pages, routes) = (UnloggedPages::of(Arc::clone(&vm)), Mutex::default());
        Ok(Self { inner, faults, shadow, vm, copier: Copier::start(cpus)?, pages, routes })
    }
}

impl Publisher for FaultInjector {
    fn kind(&self) -> PublisherKind {
        self.inner.kind()
    }

    fn attach(&self, vcpu: VcpuId) -> Result<Option<Box<dyn Publication + '_>>, StealTimeError> {
        let Some(inner) = self.inner.attach(vcpu)? else { return Ok(None) };
        let shadow_gpa = (vcpu.index() * RECORD_SIZE) as u64;
        let Some(shadow) = GuestRecord::at(&self.shadow, shadow_gpa) else { return Ok(None) };
        let route = Arc::new(Route::new(shadow, FaultPlan::new(self.faults, vcpu)));
        self.copier.add(Arc::clone(&route));
        sync::lock(&self.routes).insert(vcpu, Arc::clone(&route));
        Ok(Some(Box::new(FaultyPublication { inner, route, shadow_gpa, publisher: self })))
    }

    fn unlogged_pages(&self) -> Option<Vec<u64>> {
        self.pages.all()
    }

    fn counts_at_rest(&self, vcpu: VcpuId) -> Option<bpf::SwitchCounts> {
        self.inner.counts_at_rest(vcpu)
    }

    fn limits(&self) -> Vec<String> {
        let mut limits = self.inner.limits();
        limits.push(format!("faults are injected: {}", self.faults));
        limits
    }
}

/// The publication of one vCPU, on its thread.
#[derive(Debug)]
struct FaultyPublication<'p> {
    inner: Box<dyn Publication + 'p>,
    route: Arc<Route>,
    shadow_gpa: u64,
    publisher: &'p FaultInjector,
}

impl Publication for FaultyPublication<'_> {
    fn publish(&mut self, gpa: u64, least_ns: u64) -> Result<(), StealTimeError> {
        // First the shadow record, so that the guest's record starts with its steal.
        self.inner.publish(self.shadow_gpa, 0)?;
        if let Some(record) = GuestRecord::at(&self.publisher.vm, gpa) {
            self.publisher.pages.note(gpa);
            self.route.set_target(record, least_ns);
        }
        Ok(())
    }

    fn withdraw(&mut self) {
        self.route.clear_target();
        self.inner.withdraw();
    }

    fn unjudged_inits(&mut self) -> Option<Inits> {
        let inits = self.inner.unjudged_inits()?;
        self.route.pause();
        Some(inits)
    }

    fn set_judged(&mut self, inits: Inits) -> Result<(), StealTimeError> {
        self.inner.set_judged(inits)?;
        self.route.resume();
        Ok(())
    }

    fn deschedule(&mut self) {
        self.inner.deschedule();
    }

    fn schedule(&mut self, descheduled_ns: u64) -> Result<(), StealTimeError> {
        self.inner.schedule(descheduled_ns)
    }

    fn pause(&mut self) {
        self.inner.pause();
        self.route.pause();
    }

    fn discard_run_delay(&mut self, run_delay_ns: u64) -> u64 {
        self.inner.discard_run_delay(run_delay_ns)
    }

    fn resume(&mut self) -> Result<(), StealTimeError> {
        self.inner.resume()?;
        self.route.resume();
        Ok(())
    }

    fn before_entry(&mut self) {
        self.inner.before_entry();
    }

    fn counts(&self) -> Counts {
        self.inner.counts()
    }
}

impl Drop for FaultyPublication<'_> {
    fn drop(&mut self) {
        self.withdraw();
        self.publisher.copier.remove(&self.route);
    }
}
