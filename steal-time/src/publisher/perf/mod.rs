//! The `perf` publisher: the kernel's own log of switches, without BPF.
//!
//! Each vCPU's thread has its switches recorded by perf ([`host::perf`]), and two kinds of readers are told of
//! each record, some 25 to 40 us after the switch at best:
//!
//! - **the vCPU that is switched in**, by a kick: it leaves the guest, tells its steal, clears its byte, and looks at
//!   everybody else's log. So it publishes for the vCPU whose CPU it has got.
//! - **the observer**, a thread on CPUs that no vCPU uses, where there are any. It sees the preemption by strangers, too.
//!
//! Without a CPU of its own the observer would have to take a vCPU's to say that another has lost its own. That is a
//! switch, too, and the vCPU's return is another, which would wake the observer at once: measured, 60,000 switches in a
//! second. So there it takes its turn like everybody else, and what strangers do is seen late.
//!
//! Who writes what: whoever reads a log stores that vCPU's byte. Version and steal are the vCPU's own thread's.
//!
//! Where `perf_event_paranoid` is 2 or less this takes no right at all.
//!
//! | file | what it does |
//! |---|---|
//! | `desk.rs` | what readers and vCPU thread share of one vCPU |
//! | `observer.rs` | the thread that reads the logs |

mod desk;
mod observer;

use std::ffi::c_int;
use std::sync::Arc;

use protocol::VcpuId;

use super::own_record::OwnRecord;
use super::pages::UnloggedPages;
use super::{Counts, INIT_GOES_UNNOTICED, Publication, Publisher, PublisherError, PublisherKind, bpf};
use crate::host_vm::HostVm;
use desk::{Desk, Desks};
use host::cpus::Cpus;
pub use observer::{Observer, ObserverError};

/// Pages of a vCPU's ring: room for 340 switches, which is much for a log that is read at each.
const RING_PAGES: usize = 2;

/// Publishes by perf for one VM.
#[derive(Debug)]
pub struct PerfPublisher {
    vm: Arc<dyn HostVm>,
    signal: c_int,
    desks: Arc<Desks>,
    observer: Observer,
    pages: UnloggedPages,
}

impl PerfPublisher {
    /// Publishes into records in `vm`'s memory for vCPUs that use `cpus`.
    ///
    /// # Errors
    /// [`PublisherError::NoKickSignal`]; [`ObserverError`], out of descriptors or threads most likely.
    pub fn new(vm: Arc<dyn HostVm>, cpus: &Cpus) -> Result<Self, PublisherError> {
        let signal = vm.kick_signal().ok_or(PublisherError::NoKickSignal(PublisherKind::Perf))?;
        let observer = Observer::start(cpus)?;
        Ok(Self { vm, signal, desks: Arc::default(), observer, pages: UnloggedPages::default() })
    }
}

impl Publisher for PerfPublisher {
    fn kind(&self) -> PublisherKind {
        PublisherKind::Perf
    }

    fn attach(&self, vcpu: VcpuId) -> Result<Option<Box<dyn Publication + '_>>, PublisherError> {
        let own = OwnRecord::new(Arc::clone(&self.vm))?;
        let desk = Arc::new(Desk::of_this_thread(vcpu, RING_PAGES, self.signal)?);
        self.observer.watch(Arc::clone(&desk))?;
        self.desks.add(Arc::clone(&desk));
        Ok(Some(Box::new(PerfPublication { own, desk, publisher: self })))
    }

    fn unlogged_pages(&self) -> Vec<u64> {
        self.pages.all()
    }

    fn counts_at_rest(&self, vcpu: VcpuId) -> Option<bpf::Counts> {
        let desk = self.desks.of(vcpu)?;
        desk.observe();
        Some(desk.counts().program)
    }

    fn limits(&self) -> Vec<String> {
        let late =
            "the byte comes some 25 to 40 us after the switch, so a shorter preemption is not seen in time";
        [late, INIT_GOES_UNNOTICED].map(str::to_owned).into_iter().chain(self.observer.limits()).collect()
    }
}

/// One vCPU's publication. Lives on the vCPU's thread.
#[derive(Debug)]
struct PerfPublication<'p> {
    own: OwnRecord,
    desk: Arc<Desk>,
    publisher: &'p PerfPublisher,
}

impl Publication for PerfPublication<'_> {
    fn publish(&mut self, gpa: u64, least_ns: u64) -> Result<(), PublisherError> {
        self.publisher.pages.note(gpa);
        self.own.publish(gpa, least_ns)?;
        self.desk.share(self.own.shared());
        Ok(())
    }

    fn withdraw(&mut self) {
        self.desk.share(None);
        self.own.withdraw();
    }

    fn take_init(&mut self) -> bool {
        false
    }

    fn park(&mut self) {
        // The byte is nobody else's for as long as it lasts.
        self.desk.share(None);
        self.own.park();
    }

    fn unpark(&mut self, parked_ns: u64) -> Result<(), PublisherError> {
        self.own.unpark(parked_ns)?;
        self.desk.share(self.own.shared());
        Ok(())
    }

    fn rest(&mut self) {
        self.desk.share(None);
        self.own.rest();
    }

    fn forget_waiting(&mut self, run_delay_ns: u64) -> u64 {
        self.own.forget_waiting(run_delay_ns)
    }

    fn rise(&mut self) -> Result<(), PublisherError> {
        self.own.rise()?;
        self.desk.share(self.own.shared());
        Ok(())
    }

    fn before_entry(&mut self) {
        if self.desk.was_switched() {
            // A thread that cannot read its own run delay any more tells what it has told so far.
            let _ = self.own.update();
            self.publisher.desks.observe_others(&self.desk);
        } else {
            self.own.clear_byte();
        }
    }

    fn counts(&self) -> Counts {
        self.desk.observe();
        Counts { cleared_at_entry: self.own.cleared_at_entry(), ..self.desk.counts() }
    }
}

impl Drop for PerfPublication<'_> {
    fn drop(&mut self) {
        self.withdraw();
        self.publisher.desks.remove(&self.desk);
        self.publisher.observer.forget(&self.desk);
    }
}
