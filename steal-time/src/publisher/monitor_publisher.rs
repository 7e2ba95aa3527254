//! The `monitor` publisher: publishes only what the monitor itself does.
//!
//! It needs nothing but KVM. `preempted` is set while the monitor has the vCPU descheduled. A
//! preemption by the host sets no byte. Steal contains both, and is updated before the next entry
//! into the guest; a poller makes the vCPU leave the guest for that.

use std::sync::Arc;

use protocol::VcpuId;

use super::pages::UnloggedPages;
use super::poller::{self, Poller};
use super::thread_record::ThreadRecord;
use super::{Counts, INIT_IS_MISSED, Publication, Publisher, PublisherKind};
use crate::error::StealTimeError;
use crate::host_vm::HostVm;

/// The `monitor` publisher of one VM.
#[derive(Debug)]
pub struct MonitorPublisher {
    vm: Arc<dyn HostVm>,
    pages: UnloggedPages,
    poller: Poller,
}

impl MonitorPublisher {
    /// Creates a publisher of records in `vm`'s memory, and starts its poller.
    ///
    /// # Errors
    /// [`StealTimeError::NoKickSignal`].
    pub fn new(vm: Arc<dyn HostVm>) -> Result<Self, StealTimeError> {
        let signal = vm.kick_signal().ok_or(StealTimeError::NoKickSignal(PublisherKind::Monitor))?;
        let pages = UnloggedPages::of(Arc::clone(&vm));
        Ok(Self { vm, pages, poller: Poller::start(signal) })
    }
}

impl Publisher for MonitorPublisher {
    fn kind(&self) -> PublisherKind {
        PublisherKind::Monitor
    }

    fn unlogged_pages(&self) -> Option<Vec<u64>> {
        self.pages.all()
    }

    fn limits(&self) -> Vec<String> {
        let what = "preemption by the host is missed: `preempted` follows what this monitor does itself";
        let late = format!("steal is up to {} ms late", poller::PERIOD.as_millis());
        vec![what.to_owned(), late, INIT_IS_MISSED.to_owned()]
    }

    fn attach(&self, _vcpu: VcpuId) -> Result<Option<Box<dyn Publication + '_>>, StealTimeError> {
        let own = ThreadRecord::new(Arc::clone(&self.vm))?;
        self.poller.poll_this_thread()?;
        Ok(Some(Box::new(MonitorPublication {
            own,
            deschedules: 0,
            pages: &self.pages,
            poller: &self.poller,
        })))
    }
}

/// The publication of one vCPU, owned by its thread.
#[derive(Debug)]
struct MonitorPublication<'p> {
    own: ThreadRecord,
    deschedules: u64,
    pages: &'p UnloggedPages,
    poller: &'p Poller,
}

impl Publication for MonitorPublication<'_> {
    fn publish(&mut self, gpa: u64, least_ns: u64) -> Result<(), StealTimeError> {
        self.pages.note(gpa);
        self.own.publish(gpa, least_ns)
    }

    fn withdraw(&mut self) {
        self.own.withdraw();
    }

    fn deschedule(&mut self) {
        self.deschedules += 1;
        self.own.deschedule();
    }

    fn schedule(&mut self, descheduled_ns: u64) -> Result<(), StealTimeError> {
        self.own.schedule(descheduled_ns)
    }

    fn pause(&mut self) {
        self.own.pause();
    }

    fn discard_run_delay(&mut self, run_delay_ns: u64) -> u64 {
        self.own.discard_run_delay(run_delay_ns)
    }

    fn resume(&mut self) -> Result<(), StealTimeError> {
        self.own.resume()
    }

    fn before_entry(&mut self) {
        // If the run delay cannot be read, steal keeps its value
        let _ = self.own.update();
    }

    fn counts(&self) -> Counts {
        let (deschedules, cleared_at_entry) = (self.deschedules, self.own.cleared_at_entry());
        Counts { cleared_at_entry, deschedules, ..Counts::default() }
    }
}

impl Drop for MonitorPublication<'_> {
    fn drop(&mut self) {
        self.poller.forget_this_thread();
    }
}
