//! The faulty publisher: any other one, with faults that are known.
//!
//! What is wrong with a byte can only be told by somebody who has found a wrong byte before. So the publisher inside
//! writes records of its own, in memory that the guest does not see, and a copying thread writes the guest's: as they are,
//! but for the [`Faults`] that were asked for. It counts each. An oracle that does not find them is no oracle; and a lock
//! that believes the byte can be shown what it costs when the byte is wrong.
//!
//! The copy is [`PERIOD`] late at most, where the copying thread gets a CPU, and a preemption shorter than that may not
//! be copied at all. KVM's own publisher writes the guest's record itself, so nothing can stand between.

#![expect(unsafe_code, reason = "vouches for the memory of the inner records")]

mod copier;
mod faults;
mod plan;

use std::collections::BTreeMap;
use std::ffi::c_int;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use protocol::VcpuId;

use copier::{Copier, Route};
pub use copier::{CopierError, PERIOD};
pub use faults::{Faults, FaultsError};
use host::cpus::Cpus;
pub use plan::FaultCounts;
use steal_time::bpf;
use steal_time::host_vm::{AllStopped, HostVm};
use steal_time::publisher::record::{GuestRecord, RECORD_SIZE};
use steal_time::publisher::{
    BpfPublisher, Counts, MsrOwner, Publication, Publisher, PublisherKind, Selection, StealTimeError,
    UnloggedPages,
};
use vmm::memory::{MemoryError, Ram};

/// Memory for the records of the publisher inside (MiB): 255 of them take 16 KiB.
const SHADOW_MIB: u64 = 1;

/// Faults cannot be injected.
#[derive(Debug, thiserror::Error)]
pub enum FaultInjectionError {
    /// A publisher that writes guest memory by itself leaves no place for faults.
    #[error(
        "Cannot make publisher {0} faulty: nothing of ours stands between it and the guest (try --publisher bpf)"
    )]
    CannotBeFaulty(PublisherKind),
    /// Only the program can be made to overlook switches.
    #[error(
        "Cannot make publisher {0} overlook switches: only a BPF program is told of each (try drop=SHARE)"
    )]
    CannotOverlook(PublisherKind),
    /// The copying thread.
    #[error(transparent)]
    Copier(#[from] CopierError),
    /// Memory for inner records.
    #[error("Cannot get memory for the records of a publisher that is made faulty")]
    Shadow(#[source] MemoryError),
}

impl From<FaultInjectionError> for StealTimeError {
    fn from(error: FaultInjectionError) -> Self {
        Self::Wrapper(error.into())
    }
}

/// A publisher with faults.
#[derive(Debug)]
pub struct Injected {
    /// What the guest's vCPUs attach to.
    pub publisher: Arc<dyn Publisher>,
    /// What counts the faults; `None` if the BPF program makes all of them.
    pub injector: Option<Arc<FaultInjector>>,
}

/// Makes the publisher that `selection` settled on, with `faults`.
///
/// # Errors
/// [`FaultInjectionError`], or what the publisher itself meets.
pub fn inject(
    selection: &Selection,
    vm: Arc<dyn HostVm>,
    cpus: &Cpus,
    faults: Faults,
) -> Result<Injected, StealTimeError> {
    if !faults.takes_a_copier() {
        let publisher = with_losses(selection, vm, cpus, faults.lose_every)?;
        return Ok(Injected { publisher, injector: None });
    }
    if selection.kind().msr_owner() != MsrOwner::Monitor {
        return Err(FaultInjectionError::CannotBeFaulty(selection.kind()).into());
    }
    let shadow = Ram::new(SHADOW_MIB).map_err(FaultInjectionError::Shadow)?;
    let shadow: Arc<dyn HostVm> = Arc::new(Shadow { ram: shadow, vm: Arc::clone(&vm) });
    let inner = with_losses(selection, Arc::clone(&shadow), cpus, faults.lose_every)?;
    let injector =
        FaultInjector::new(inner, shadow, (vm, cpus), faults).map_err(FaultInjectionError::from)?;
    let injector = Arc::new(injector);
    Ok(Injected { publisher: Arc::clone(&injector) as Arc<dyn Publisher>, injector: Some(injector) })
}

/// The publisher that `selection` settled on; its program overlooks one switch-in in `lose_every`, 0 for none.
fn with_losses(
    selection: &Selection,
    vm: Arc<dyn HostVm>,
    cpus: &Cpus,
    lose_every: u64,
) -> Result<Arc<dyn Publisher>, StealTimeError> {
    match selection.program() {
        Some(program) => Ok(Arc::new(BpfPublisher::new(Arc::clone(program), vm, cpus, lose_every)?)),
        None if lose_every > 0 => Err(FaultInjectionError::CannotOverlook(selection.kind()).into()),
        None => selection.publisher(vm, cpus),
    }
}

/// The guest as the inner publisher sees it: its vCPUs, and memory of ours in place of its RAM.
#[derive(Debug)]
struct Shadow {
    ram: Ram,
    vm: Arc<dyn HostVm>,
}

// SAFETY: `ram` keeps its pages mapped as long as this object exists, and they hold inner records alone. The guest's own
// `stop_all` keeps its promise.
unsafe impl HostVm for Shadow {
    fn page_hva(&self, page_gpa: u64) -> Option<NonNull<u8>> {
        self.ram.page_hva(page_gpa)
    }

    fn stop_all(&self, act: &mut dyn FnMut(&AllStopped)) {
        self.vm.stop_all(act);
    }

    fn kick_signal(&self) -> Option<c_int> {
        self.vm.kick_signal()
    }
}

/// See the module.
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
    /// The faults made for `vcpu` so far; `None` if it was never attached.
    pub fn counts(&self, vcpu: VcpuId) -> Option<FaultCounts> {
        let routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        routes.get(&vcpu).map(|route| route.counts())
    }

    /// Makes `inner`, which publishes into `shadow`, publish into records of `vm` for vCPUs that use these CPUs,
    /// with `faults`.
    ///
    /// # Errors
    /// [`CopierError`].
    pub fn new(
        inner: Arc<dyn Publisher>,
        shadow: Arc<dyn HostVm>,
        (vm, cpus): (Arc<dyn HostVm>, &Cpus),
        faults: Faults,
    ) -> Result<Self, CopierError> {
        let (pages, routes) = (UnloggedPages::default(), Mutex::default());
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
        let route = Arc::new(Route::new(shadow, plan::Plan::new(self.faults, vcpu)));
        self.copier.add(Arc::clone(&route));
        self.routes.lock().unwrap_or_else(PoisonError::into_inner).insert(vcpu, Arc::clone(&route));
        Ok(Some(Box::new(FaultyPublication { inner, route, shadow_gpa, publisher: self })))
    }

    fn unlogged_pages(&self) -> Vec<u64> {
        self.pages.all()
    }

    fn counts_at_rest(&self, vcpu: VcpuId) -> Option<bpf::SwitchCounts> {
        self.inner.counts_at_rest(vcpu)
    }

    fn limits(&self) -> Vec<String> {
        let mut limits = self.inner.limits();
        limits.push(format!("it is made faulty: {}", self.faults));
        limits
    }
}

/// One vCPU's publication. Lives on the vCPU's thread.
#[derive(Debug)]
struct FaultyPublication<'p> {
    inner: Box<dyn Publication + 'p>,
    route: Arc<Route>,
    shadow_gpa: u64,
    publisher: &'p FaultInjector,
}

impl Publication for FaultyPublication<'_> {
    fn publish(&mut self, gpa: u64, least_ns: u64) -> Result<(), StealTimeError> {
        // The inner record is told what there is to tell, so that the guest's begins with it.
        self.inner.publish(self.shadow_gpa, 0)?;
        if let Some(record) = GuestRecord::at(&self.publisher.vm, gpa) {
            self.publisher.pages.note(gpa);
            self.route.lead_to(record, least_ns);
        }
        Ok(())
    }

    fn withdraw(&mut self) {
        self.route.lead_nowhere();
        self.inner.withdraw();
    }

    fn take_init(&mut self) -> bool {
        let is_new = self.inner.take_init();
        if is_new {
            self.route.lead_nowhere();
        }
        is_new
    }

    fn park(&mut self) {
        self.inner.park();
    }

    fn unpark(&mut self, parked_ns: u64) -> Result<(), StealTimeError> {
        self.inner.unpark(parked_ns)
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
