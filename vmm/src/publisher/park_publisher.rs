//! The `park` publisher: it tells what this monitor does itself, and nothing else.
//!
//! It needs nothing but KVM. When a policy keeps a vCPU from running, the byte says so; when the host preempts its thread,
//! nobody knows. Steal counts both, and is told when the vCPU next leaves the guest and enters it again, which a reminder sees
//! to.

use protocol::VcpuId;

use super::own_record::OwnRecord;
use super::pages::Pages;
use super::reminder::{self, Reminder};
use super::{Counts, INIT_GOES_UNNOTICED, Publication, Publisher, PublisherError, PublisherKind};
use crate::memory::Ram;

/// Publishes the monitor's own parks for one VM.
#[derive(Debug)]
pub struct ParkPublisher {
    ram: Ram,
    pages: Pages,
    reminder: Reminder,
}

impl ParkPublisher {
    /// Publishes into records in `ram`.
    pub fn new(ram: Ram) -> Self {
        Self { ram, pages: Pages::default(), reminder: Reminder::start() }
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
        let own = OwnRecord::new(self.ram.clone())?;
        self.reminder.remind_this_thread()?;
        Ok(Some(Box::new(ParkPublication { own, parks: 0, pages: &self.pages, reminder: &self.reminder })))
    }
}

/// One vCPU's publication. Lives on the vCPU's thread.
#[derive(Debug)]
struct ParkPublication<'p> {
    own: OwnRecord,
    parks: u64,
    pages: &'p Pages,
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
