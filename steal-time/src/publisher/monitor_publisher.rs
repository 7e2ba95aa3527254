//! The `park` publisher: it tells what this monitor does itself, and nothing else.
//!
//! It needs nothing but KVM. When a policy keeps a vCPU from running, the byte says so; when the host preempts its thread,
//! nobody knows. Steal counts both, and is told when the vCPU next leaves the guest and enters it again, which a poller sees
//! to.

use std::sync::Arc;

use protocol::VcpuId;

use super::pages::UnloggedPages;
use super::poller::{self, Poller};
use super::thread_record::ThreadRecord;
use super::{Counts, INIT_GOES_UNNOTICED, Publication, Publisher, PublisherKind, StealTimeError};
use crate::host_vm::HostVm;

/// Publishes the monitor's own parks for one VM.
#[derive(Debug)]
pub struct MonitorPublisher {
    vm: Arc<dyn HostVm>,
    pages: UnloggedPages,
    poller: Poller,
}

impl MonitorPublisher {
    /// Publishes into records in `vm`'s memory.
    ///
    /// # Errors
    /// [`StealTimeError::NoKickSignal`].
    pub fn new(vm: Arc<dyn HostVm>) -> Result<Self, StealTimeError> {
        let signal = vm.kick_signal().ok_or(StealTimeError::NoKickSignal(PublisherKind::Monitor))?;
        Ok(Self { vm, pages: UnloggedPages::default(), poller: Poller::start(signal) })
    }
}

impl Publisher for MonitorPublisher {
    fn kind(&self) -> PublisherKind {
        PublisherKind::Monitor
    }

    fn unlogged_pages(&self) -> Vec<u64> {
        self.pages.all()
    }

    fn limits(&self) -> Vec<String> {
        let what = "preemption by the host is not seen: the byte tells of what this monitor does itself";
        let late = format!("steal is told up to {} ms late", poller::PERIOD.as_millis());
        vec![what.to_owned(), late, INIT_GOES_UNNOTICED.to_owned()]
    }

    fn attach(&self, _vcpu: VcpuId) -> Result<Option<Box<dyn Publication + '_>>, StealTimeError> {
        let own = ThreadRecord::new(Arc::clone(&self.vm))?;
        self.poller.poll_this_thread()?;
        Ok(Some(Box::new(MonitorPublication { own, parks: 0, pages: &self.pages, poller: &self.poller })))
    }
}

/// One vCPU's publication. Lives on the vCPU's thread.
#[derive(Debug)]
struct MonitorPublication<'p> {
    own: ThreadRecord,
    parks: u64,
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

    fn take_init(&mut self) -> bool {
        false
    }

    fn park(&mut self) {
        self.parks += 1;
        self.own.park();
    }

    fn unpark(&mut self, parked_ns: u64) -> Result<(), StealTimeError> {
        self.own.unpark(parked_ns)
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
        // A thread that cannot read its own run delay any more tells what it has told so far.
        let _ = self.own.update();
    }

    fn counts(&self) -> Counts {
        Counts { parks: self.parks, cleared_at_entry: self.own.cleared_at_entry(), ..Counts::default() }
    }
}

impl Drop for MonitorPublication<'_> {
    fn drop(&mut self) {
        self.poller.forget_this_thread();
    }
}
