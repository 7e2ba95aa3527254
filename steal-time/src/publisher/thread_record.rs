//! A record whose version and steal the vCPU's own thread writes, between two stays in the guest.
//!
//! So it is without BPF: nobody else knows the thread's run delay at the moment when it is final, and nobody else can
//! write two words that belong together without being interrupted by the vCPU. Whoever learns of switches may set and
//! clear the byte from elsewhere ([`ThreadRecord::shared`]); what belongs to the vCPU's thread is told here.

use std::sync::Arc;

use super::StealTimeError;
use super::record::GuestRecord;
use crate::host_vm::HostVm;
use host::stats::RunDelay;

/// See the module. Lives on the vCPU's thread.
#[derive(Debug)]
pub(super) struct ThreadRecord {
    vm: Arc<dyn HostVm>,
    run_delay: RunDelay,
    record: Option<Arc<GuestRecord>>,
    /// Nothing is to be written.
    is_paused: bool,
    /// Time for which the vCPU was kept from running, all told (ns).
    parked_ns: u64,
    /// Run delay and time parked that steal holds already (ns).
    accounted_ns: u64,
    cleared_at_entry: u64,
}

impl ThreadRecord {
    /// For the vCPU of the calling thread, whose records lie in `vm`'s memory. It has none yet.
    pub(super) fn new(vm: Arc<dyn HostVm>) -> Result<Self, StealTimeError> {
        Ok(Self {
            vm,
            run_delay: RunDelay::of_this_thread().map_err(StealTimeError::RunDelay)?,
            record: None,
            is_paused: false,
            parked_ns: 0,
            accounted_ns: 0,
            cleared_at_entry: 0,
        })
    }

    /// The record, for others who may store its byte; `None` while nothing is to be written.
    pub(super) fn shared(&self) -> Option<Arc<GuestRecord>> {
        self.record.clone().filter(|_| !self.is_paused)
    }

    /// From now on it is the one at `gpa`, which is updated once; its steal is `least_ns` at least.
    pub(super) fn publish(&mut self, gpa: u64, least_ns: u64) -> Result<(), StealTimeError> {
        let Some(record) = GuestRecord::at(&self.vm, gpa) else { return Ok(()) };
        let unpublished_ns = self.account()?;
        record.update(least_ns, unpublished_ns);
        self.record = Some(Arc::new(record));
        Ok(())
    }

    /// There is none any more.
    pub(super) fn withdraw(&mut self) {
        self.record = None;
    }

    /// The guest is about to be entered: steal is all that there is to tell, and the byte is clear.
    pub(super) fn update(&mut self) -> Result<(), StealTimeError> {
        let unpublished_ns = self.account()?;
        if let Some(record) = self.shared() {
            if unpublished_ns > 0 {
                record.update(0, unpublished_ns);
            }
            self.clear_byte();
        }
        Ok(())
    }

    /// Clears a byte that says preempted of a vCPU that runs.
    pub(super) fn clear_byte(&mut self) {
        let is_set = self.record.as_ref().is_some_and(|record| !self.is_paused && record.clear_preempted());
        self.cleared_at_entry += u64::from(is_set);
    }

    /// The vCPU is kept from running.
    pub(super) fn park(&mut self) {
        if let Some(record) = &self.record {
            record.set_preempted();
        }
    }

    /// It may run again, and was kept from it for `parked_ns`.
    pub(super) fn unpark(&mut self, parked_ns: u64) -> Result<(), StealTimeError> {
        self.parked_ns += parked_ns;
        self.resume()
    }

    /// Nothing is written until [`rise`](Self::resume), and the byte is clear.
    pub(super) fn pause(&mut self) {
        if let Some(record) = &self.record {
            record.clear_preempted();
        }
        self.is_paused = true;
    }

    /// See [`super::Publication::discard_run_delay`].
    pub(super) fn discard_run_delay(&mut self, run_delay_ns: u64) -> u64 {
        let total = run_delay_ns + self.parked_ns;
        total.saturating_sub(std::mem::replace(&mut self.accounted_ns, total))
    }

    /// It is written again, and updated once.
    pub(super) fn resume(&mut self) -> Result<(), StealTimeError> {
        self.is_paused = false;
        let unpublished_ns = self.account()?;
        if let Some(record) = &self.record {
            record.update(0, unpublished_ns);
        }
        Ok(())
    }

    /// Times it was about to enter the guest with the byte set.
    pub(super) fn cleared_at_entry(&self) -> u64 {
        self.cleared_at_entry
    }

    /// Takes all run delay and time parked so far for told, and gives what was not.
    fn account(&mut self) -> Result<u64, StealTimeError> {
        let run_delay_ns = self.run_delay.read_ns().map_err(StealTimeError::RunDelay)?;
        Ok(self.discard_run_delay(run_delay_ns))
    }
}
