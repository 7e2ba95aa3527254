//! The `bpf` publisher: the program writes in the context switch, the vCPU's thread does the rest.
//!
//! What the thread does, always outside the guest and about its own record only:
//!
//! - registration: finds the record's place, makes the first update, then hands the record over by one store;
//! - withdrawal: one store, in program order with the thread's own switches, after which nothing is written;
//! - before each entry: a byte that is still set is cleared. It is the last of three layers: the switch-in clears
//!   it, a timer on the thread's CPU time clears it where a switch-in went untraced, and so does this.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use protocol::{MAX_VCPUS, VcpuId};

use super::bpf::{Enrolled, Program, Site, Slot};
use super::{Counts, Publication, Publisher, PublisherError, PublisherKind};
use crate::host::account;
use crate::memory::Ram;
use crate::steal_time::overlay::{Overlay, Place};
use crate::vcpu::gate::Gate;

/// Publishes by BPF for one VM.
#[derive(Debug)]
pub struct BpfPublisher {
    program: Arc<Program>,
    overlay: Overlay,
    cleared_at_entry: [AtomicU64; MAX_VCPUS],
}

impl BpfPublisher {
    /// Publishes into records in `ram` for the vCPU threads of `gate`.
    pub fn new(program: Arc<Program>, ram: Ram, gate: Arc<Gate>) -> Self {
        let overlay = Overlay::new(ram, gate, Arc::clone(&program));
        Self { program, overlay, cleared_at_entry: [const { AtomicU64::new(0) }; MAX_VCPUS] }
    }
}

impl Publisher for BpfPublisher {
    fn kind(&self) -> PublisherKind {
        PublisherKind::Bpf
    }

    fn attach(&self, vcpu: VcpuId) -> Result<Option<Box<dyn Publication + '_>>, PublisherError> {
        Ok(Some(Box::new(BpfPublication {
            _enrolled: self.program.enrol_current_thread(vcpu)?,
            slot: self.program.slot(vcpu),
            overlay: &self.overlay,
            cleared_at_entry: &self.cleared_at_entry[vcpu.index()],
            place: None,
        })))
    }

    fn counts(&self, vcpu: VcpuId) -> Option<Counts> {
        let slot = self.program.slot(vcpu);
        Some(Counts {
            outs: slot.outs.load(Ordering::Relaxed),
            sleeps: slot.sleeps.load(Ordering::Relaxed),
            ins: slot.ins.load(Ordering::Relaxed),
            healed: slot.healed.load(Ordering::Relaxed),
            cleared_at_entry: self.cleared_at_entry[vcpu.index()].load(Ordering::Relaxed),
        })
    }
}

/// One vCPU's publication. Lives on the vCPU's thread.
#[derive(Debug)]
struct BpfPublication<'p> {
    _enrolled: Enrolled<'p>,
    slot: &'p Slot,
    overlay: &'p Overlay,
    cleared_at_entry: &'p AtomicU64,
    place: Option<Place>,
}

impl Publication for BpfPublication<'_> {
    fn publish(&mut self, gpa: u64) -> Result<(), PublisherError> {
        let Some(place) = self.overlay.take(gpa)? else { return Ok(()) };
        // Steal counts from the vCPU's first moment on, whether it was published or not, as KVM's does. A switch
        // between this reading and the hand-over is not lost: the program continues from what is accounted here.
        let run_delay_ns = account::own_run_delay_ns().map_err(PublisherError::RunDelay)?;
        let accounted_ns = self.slot.run_delay.load(Ordering::Relaxed);
        self.overlay.record(&place).update(run_delay_ns.saturating_sub(accounted_ns));
        self.slot.run_delay.store(run_delay_ns, Ordering::Relaxed);
        self.slot.publish_into(Site::new(place.element, place.offset));
        self.place = Some(place);
        Ok(())
    }

    fn withdraw(&mut self) {
        self.slot.stop();
        if let Some(place) = self.place.take() {
            self.overlay.give_back(&place);
        }
    }

    fn before_entry(&mut self) {
        if let Some(place) = &self.place
            && self.overlay.record(place).clear_preempted()
        {
            self.cleared_at_entry.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for BpfPublication<'_> {
    fn drop(&mut self) {
        self.withdraw();
    }
}
