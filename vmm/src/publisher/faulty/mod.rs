//! The faulty publisher: any other one, with faults that are known.
//!
//! What is wrong with a byte can only be told by somebody who has found a wrong byte before. So the publisher inside
//! writes records of its own, in memory that the guest does not see, and a copying thread writes the guest's: as they are,
//! but for the [`Faults`] that were asked for. It counts each. An oracle that does not find them is no oracle; and a lock
//! that believes the byte can be shown what it costs when the byte is wrong.
//!
//! The copy is [`PERIOD`] late at most, where the copying thread gets a CPU, and a preemption shorter than that may not
//! be copied at all. KVM's own publisher writes the guest's record itself, so nothing can stand between.

mod copier;
mod faults;
mod plan;

use std::sync::Arc;

use protocol::VcpuId;

use super::bpf;
use super::pages::Pages;
use super::record::{GuestRecord, RECORD_SIZE};
use super::{Counts, Publication, Publisher, PublisherError, PublisherKind};
use crate::host::cpus::Cpus;
use crate::memory::Ram;
use copier::{Copier, Route};
pub use copier::{CopierError, PERIOD};
pub use faults::{Faults, FaultsError};
pub use plan::FaultCounts;

/// Memory for the records of the publisher inside (MiB): 255 of them take 16 KiB.
const SHADOW_MIB: u64 = 1;

/// Memory for the records of a publisher that is to be made faulty.
///
/// # Errors
/// The host's refusal.
pub fn shadow() -> Result<Ram, PublisherError> {
    Ram::new(SHADOW_MIB).map_err(|source| PublisherError::Shadow(source.into()))
}

/// See the module.
#[derive(Debug)]
pub struct Faulty {
    inner: Arc<dyn Publisher>,
    faults: Faults,
    shadow: Ram,
    ram: Ram,
    copier: Copier,
    pages: Pages,
}

impl Faulty {
    /// Makes `inner`, which publishes into `shadow`, publish into records in `ram` for vCPUs that use these CPUs,
    /// with `faults`.
    ///
    /// # Errors
    /// [`CopierError`].
    pub fn new(
        inner: Arc<dyn Publisher>,
        shadow: Ram,
        (ram, cpus): (Ram, &Cpus),
        faults: Faults,
    ) -> Result<Self, CopierError> {
        Ok(Self { inner, faults, shadow, ram, copier: Copier::start(cpus)?, pages: Pages::default() })
    }
}

impl Publisher for Faulty {
    fn kind(&self) -> PublisherKind {
        self.inner.kind()
    }

    fn attach(&self, vcpu: VcpuId) -> Result<Option<Box<dyn Publication + '_>>, PublisherError> {
        let Some(inner) = self.inner.attach(vcpu)? else { return Ok(None) };
        let shadow_gpa = (vcpu.index() * RECORD_SIZE) as u64;
        let Some(shadow) = GuestRecord::at(&self.shadow, shadow_gpa) else { return Ok(None) };
        let route = Arc::new(Route::new(shadow, plan::Plan::new(self.faults, vcpu)));
        self.copier.add(Arc::clone(&route));
        Ok(Some(Box::new(FaultyPublication { inner, route, shadow_gpa, publisher: self })))
    }

    fn unlogged_pages(&self) -> Vec<u64> {
        self.pages.all()
    }

    fn counts_at_rest(&self, vcpu: VcpuId) -> Option<bpf::Counts> {
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
    publisher: &'p Faulty,
}

impl Publication for FaultyPublication<'_> {
    fn publish(&mut self, gpa: u64, least_ns: u64) -> Result<(), PublisherError> {
        // The inner record is told what there is to tell, so that the guest's begins with it.
        self.inner.publish(self.shadow_gpa, 0)?;
        if let Some(record) = GuestRecord::at(&self.publisher.ram, gpa) {
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

    fn unpark(&mut self, parked_ns: u64) -> Result<(), PublisherError> {
        self.inner.unpark(parked_ns)
    }

    fn rest(&mut self) {
        self.inner.rest();
        self.route.rest();
    }

    fn forget_waiting(&mut self, run_delay_ns: u64) -> u64 {
        self.inner.forget_waiting(run_delay_ns)
    }

    fn rise(&mut self) -> Result<(), PublisherError> {
        self.inner.rise()?;
        self.route.rise();
        Ok(())
    }

    fn before_entry(&mut self) {
        self.inner.before_entry();
    }

    fn counts(&self) -> Counts {
        Counts { faults: Some(self.route.counts()), ..self.inner.counts() }
    }
}

impl Drop for FaultyPublication<'_> {
    fn drop(&mut self) {
        self.withdraw();
        self.publisher.copier.remove(&self.route);
    }
}
