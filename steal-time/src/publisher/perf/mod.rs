//! The `perf` publisher: reads the kernel's records of context switches, without BPF.
//!
//! perf records the switches of each vCPU thread ([`host::perf`]). Two kinds of readers
//! learn of a record, at best 25 to 40 us after the switch:
//!
//! - **the vCPU that is switched in**, by a kick: it leaves the guest, updates its steal, clears
//!   its `preempted`, and drains the logs of all other vCPUs. So it publishes the preemption of the
//!   vCPU whose CPU it has got.
//! - **the observer**, a thread on CPUs that no vCPU uses, if there are any. It also sees
//!   preemptions by other tasks.
//!
//! Without a spare CPU the observer would have to take a vCPU's CPU to publish that another vCPU
//! has lost its own. That is a switch itself, and the vCPU's return is another, which would wake
//! the observer at once: 60,000 switches a second, when measured. So on shared CPUs it runs in
//! `SCHED_BATCH`, and sees preemptions by other tasks late.
//!
//! Writers: each reader of a log stores that vCPU's `preempted`. Only the vCPU's own thread writes
//! version and steal.
//!
//! It needs no privilege if `kernel.perf_event_paranoid` is 2 or less.
//!
//! | file | task |
//! |---|---|
//! | `switch_reader.rs` | the log of one vCPU thread, and the record that its readers store to |
//! | `observer.rs` | the observer thread |

mod observer;
mod switch_reader;

use std::ffi::c_int;
use std::sync::Arc;

use protocol::VcpuId;

use super::pages::UnloggedPages;
use super::thread_record::ThreadRecord;
use super::{Counts, INIT_IS_MISSED, Publication, Publisher, PublisherKind, bpf};
use crate::error::StealTimeError;
use crate::host_vm::HostVm;
use host::cpus::Cpus;
pub use observer::Observer;
use switch_reader::{SwitchReader, SwitchReaders};

/// Pages of a vCPU's ring: room for 340 switches, ample for a log that is read at each switch.
const RING_PAGES: usize = 2;

/// The `perf` publisher of one VM.
#[derive(Debug)]
pub struct PerfPublisher {
    vm: Arc<dyn HostVm>,
    signal: c_int,
    readers: Arc<SwitchReaders>,
    observer: Observer,
    pages: UnloggedPages,
}

impl PerfPublisher {
    /// Creates a publisher of records in `vm`'s memory, for vCPUs that use `cpus`, and starts its
    /// observer.
    ///
    /// # Errors
    /// [`StealTimeError::NoKickSignal`], or [`StealTimeError::Perf`] without a free file descriptor
    /// or thread.
    pub fn new(vm: Arc<dyn HostVm>, cpus: &Cpus) -> Result<Self, StealTimeError> {
        let signal = vm.kick_signal().ok_or(StealTimeError::NoKickSignal(PublisherKind::Perf))?;
        let observer = Observer::start(cpus)?;
        let pages = UnloggedPages::of(Arc::clone(&vm));
        Ok(Self { vm, signal, readers: Arc::default(), observer, pages })
    }
}

impl Publisher for PerfPublisher {
    fn kind(&self) -> PublisherKind {
        PublisherKind::Perf
    }

    fn attach(&self, vcpu: VcpuId) -> Result<Option<Box<dyn Publication + '_>>, StealTimeError> {
        let own = ThreadRecord::new(Arc::clone(&self.vm))?;
        let reader = Arc::new(SwitchReader::of_this_thread(vcpu, RING_PAGES, self.signal)?);
        self.observer.watch(Arc::clone(&reader))?;
        self.readers.add(Arc::clone(&reader));
        Ok(Some(Box::new(PerfPublication { own, reader, publisher: self })))
    }

    fn unlogged_pages(&self) -> Option<Vec<u64>> {
        self.pages.all()
    }

    fn counts_at_rest(&self, vcpu: VcpuId) -> Option<bpf::SwitchCounts> {
        let reader = self.readers.of(vcpu)?;
        reader.observe();
        Some(reader.counts().program)
    }

    fn limits(&self) -> Vec<String> {
        let late =
            "`preempted` follows the switch by some 25 to 40 us, so a shorter preemption is not seen in time";
        [late, INIT_IS_MISSED].map(str::to_owned).into_iter().chain(self.observer.limits()).collect()
    }
}

/// The publication of one vCPU, owned by its thread.
#[derive(Debug)]
struct PerfPublication<'p> {
    own: ThreadRecord,
    reader: Arc<SwitchReader>,
    publisher: &'p PerfPublisher,
}

impl Publication for PerfPublication<'_> {
    fn publish(&mut self, gpa: u64, least_ns: u64) -> Result<(), StealTimeError> {
        self.publisher.pages.note(gpa);
        self.own.publish(gpa, least_ns)?;
        self.reader.set_record(self.own.shared());
        Ok(())
    }

    fn withdraw(&mut self) {
        self.reader.set_record(None);
        self.own.withdraw();
    }

    fn deschedule(&mut self) {
        // Until then no other thread may clear `preempted`
        self.reader.set_record(None);
        self.own.deschedule();
    }

    fn schedule(&mut self, descheduled_ns: u64) -> Result<(), StealTimeError> {
        self.own.schedule(descheduled_ns)?;
        self.reader.set_record(self.own.shared());
        Ok(())
    }

    fn pause(&mut self) {
        self.reader.set_record(None);
        self.own.pause();
    }

    fn discard_run_delay(&mut self, run_delay_ns: u64) -> u64 {
        self.own.discard_run_delay(run_delay_ns)
    }

    fn resume(&mut self) -> Result<(), StealTimeError> {
        self.own.resume()?;
        self.reader.set_record(self.own.shared());
        Ok(())
    }

    fn before_entry(&mut self) {
        if self.reader.take_switched() {
            // If the run delay cannot be read, steal keeps its value
            let _ = self.own.update();
            self.publisher.readers.observe_others(&self.reader);
        } else {
            self.own.clear_preempted();
        }
    }

    fn counts(&self) -> Counts {
        self.reader.observe();
        Counts { cleared_at_entry: self.own.cleared_at_entry(), ..self.reader.counts() }
    }
}

impl Drop for PerfPublication<'_> {
    fn drop(&mut self) {
        self.withdraw();
        self.publisher.readers.remove(&self.reader);
        self.publisher.observer.unwatch(&self.reader);
    }
}
