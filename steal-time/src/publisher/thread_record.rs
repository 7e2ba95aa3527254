//! A record whose version and steal the vCPU's own thread writes, between two runs of the guest.
//!
//! Without BPF only that thread knows its final run delay, and only it can write both words without
//! interleaving with its own vCPU. Other threads that observe switches store single bytes: they set
//! and clear `preempted` ([`ThreadRecord::shared`]).

use std::sync::Arc;

use super::record::GuestRecord;
use crate::error::StealTimeError;
use crate::host_vm::HostVm;
use host::stats;

/// The record of one vCPU, owned by its thread.
#[derive(Debug)]
pub(super) struct ThreadRecord {
    vm: Arc<dyn HostVm>,
    record: Option<Arc<GuestRecord>>,
    /// Whether nothing may be written.
    is_paused: bool,
    /// Total time in which the monitor had the vCPU descheduled (ns).
    descheduled_ns: u64,
    /// Run delay and descheduled time that steal contains (ns).
    accounted_ns: u64,
    cleared_at_entry: u64,
}

impl ThreadRecord {
    /// Creates it for the vCPU of the calling thread, without a record. Records lie in `vm`'s
    /// memory.
    pub(super) fn new(vm: Arc<dyn HostVm>) -> Result<Self, StealTimeError> {
        // A host without the figure is found out here, not at the guest's first MSR write
        stats::own_run_delay_ns().map_err(StealTimeError::RunDelay)?;
        Ok(Self {
            vm,
            record: None,
            is_paused: false,
            descheduled_ns: 0,
            accounted_ns: 0,
            cleared_at_entry: 0,
        })
    }

    /// Returns the record, for other threads that store `preempted`; `None` while nothing may be
    /// written.
    pub(super) fn shared(&self) -> Option<Arc<GuestRecord>> {
        self.record.clone().filter(|_| !self.is_paused)
    }

    /// Sets the record to the one at `gpa`, and updates it once. Its steal is then at least
    /// `least_ns`.
    pub(super) fn publish(&mut self, gpa: u64, least_ns: u64) -> Result<(), StealTimeError> {
        let Some(record) = GuestRecord::at(&self.vm, gpa) else { return Ok(()) };
        let unpublished_ns = self.account()?;
        record.update(least_ns, unpublished_ns);
        self.record = Some(Arc::new(record));
        Ok(())
    }

    /// Drops the record.
    pub(super) fn withdraw(&mut self) {
        self.record = None;
    }

    /// Adds new run delay to steal, and clears `preempted`. Called before entry.
    pub(super) fn update(&mut self) -> Result<(), StealTimeError> {
        let unpublished_ns = self.account()?;
        if let Some(record) = self.shared() {
            if unpublished_ns > 0 {
                record.update(0, unpublished_ns);
            }
            self.clear_preempted();
        }
        Ok(())
    }

    /// Clears `preempted`. Called before entry.
    pub(super) fn clear_preempted(&mut self) {
        let is_set = self.record.as_ref().is_some_and(|record| !self.is_paused && record.clear_preempted());
        self.cleared_at_entry += u64::from(is_set);
    }

    /// Sets `preempted`: the monitor has descheduled the vCPU.
    pub(super) fn deschedule(&mut self) {
        if let Some(record) = &self.record {
            record.set_preempted();
        }
    }

    /// Adds `descheduled_ns` and new run delay to steal, and clears `preempted`.
    pub(super) fn schedule(&mut self, descheduled_ns: u64) -> Result<(), StealTimeError> {
        self.descheduled_ns += descheduled_ns;
        self.resume()
    }

    /// Clears `preempted`, and writes nothing until [`resume`](Self::resume).
    pub(super) fn pause(&mut self) {
        if let Some(record) = &self.record {
            record.clear_preempted();
        }
        self.is_paused = true;
    }

    /// Discards the run delay since [`pause`](Self::pause). Returns the discarded time (ns).
    pub(super) fn discard_run_delay(&mut self, run_delay_ns: u64) -> u64 {
        let total = run_delay_ns + self.descheduled_ns;
        total.saturating_sub(std::mem::replace(&mut self.accounted_ns, total))
    }

    /// Updates the record once. It may be written again.
    pub(super) fn resume(&mut self) -> Result<(), StealTimeError> {
        self.is_paused = false;
        let unpublished_ns = self.account()?;
        if let Some(record) = &self.record {
            record.update(0, unpublished_ns);
        }
        Ok(())
    }

    /// Returns the number of entries that found `preempted` set.
    pub(super) fn cleared_at_entry(&self) -> u64 {
        self.cleared_at_entry
    }

    /// Marks all run delay and descheduled time so far as contained in steal. Returns the part that
    /// was not (ns).
    fn account(&mut self) -> Result<u64, StealTimeError> {
        let run_delay_ns = stats::own_run_delay_ns().map_err(StealTimeError::RunDelay)?;
        Ok(self.discard_run_delay(run_delay_ns))
    }
}
