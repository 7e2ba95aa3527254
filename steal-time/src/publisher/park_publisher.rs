//! The `park` publisher: it tells what this monitor does itself, and nothing else.
//!
//! It needs nothing but KVM. When a policy keeps a vCPU from running, the byte says so; when the host preempts its thread,
//! nobody knows. Steal counts both, and is told when the vCPU next leaves the guest and enters it again, which a reminder sees
//! to.

use std::sync::Arc;

use protocol::VcpuId;

use super::own_record::OwnRecord;
use super::pages::UnloggedPages;
use super::reminder::{self, Reminder};
use super::{Counts, INIT_GOES_UNNOTICED, Publication, Publisher, PublisherError, PublisherKind};
use crate::host_vm::HostVm;

/// Publishes the monitor's own parks for one VM.
#[derive(Debug)]
pub struct ParkPublisher {
    vm: Arc<dyn HostVm>,
    pages: UnloggedPages,
    reminder: Reminder,
}

impl ParkPublisher {
    /// Publishes into records in `vm`'s memory.
    ///
    /// # Errors
    /// [`PublisherError::NoKickSignal`].
    pub fn new(vm: Arc<dyn HostVm>) -> Result<Self, PublisherError> {
        let signal = vm.kick_signal().ok_or(PublisherError::NoKickSignal(PublisherKind::Park))?;
        Ok(Self { vm, pages: UnloggedPages::default(), reminder: Reminder::start(signal) })
    }
}

impl Publisher for ParkPublisher {
    fn kind(&self) -> PublisherKind {
        PublisherKind::Park
    }

    fn unlogged_pages(&self) -> Vec<u64> {
        self.pages.all()
    }

    fn limits(&self) -> Vec<String> {
        let what = "preemption by the host is not seen: the byte tells of what this monitor does itself";
        let late = format!("steal is told up to {} ms late", reminder::PERIOD.as_millis());
        vec![what.to_owned(), late, INIT_GOES_UNNOTICED.to_owned()]
    }

    fn attach(&self, _vcpu: VcpuId) -> Result<Option<Box<dyn Publication + '_>>, PublisherError> {
        let own = OwnRecord::new(Arc::clone(&self.vm))?;
        self.reminder.remind_this_thread()?;
        Ok(Some(Box::new(ParkPublication { own, parks: 0, pages: &self.pages, reminder: &self.reminder })))
    }
}

/// One vCPU's publication. Lives on the vCPU's thread.
#[derive(Debug)]
struct ParkPublication<'p> {
    own: OwnRecord,
    parks: u64,
    pages: &'p UnloggedPages,
    reminder: &'p Reminder,
}

impl Publication for ParkPublication<'_> {
    fn publish(&mut self, gpa: u64, least_ns: u64) -> Result<(), PublisherError> {
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

    fn unpark(&mut self, parked_ns: u64) -> Result<(), PublisherError> {
        self.own.unpark(parked_ns)
    }

    fn rest(&mut self) {
        self.own.rest();
    }

    fn forget_waiting(&mut self, run_delay_ns: u64) -> u64 {
        self.own.forget_waiting(run_delay_ns)
    }

    fn rise(&mut self) -> Result<(), PublisherError> {
        self.own.rise()
    }

    fn before_entry(&mut self) {
        // A thread that cannot read its own run delay any more tells what it has told so far.
        let _ = self.own.update();
    }

    fn counts(&self) -> Counts {
        Counts { parks: self.parks, cleared_at_entry: self.own.cleared_at_entry(), ..Counts::default() }
    }
}

impl Drop for ParkPublication<'_> {
    fn drop(&mut self) {
        self.reminder.forget_this_thread();
    }
}
