//! The publishers `bpf` and `bpf-classic`: a BPF program writes in the context switch.
//!
//! The vCPU's thread does the rest, always outside the guest, and on its own record only:
//!
//! - **publish**: maps a page over the record's, updates the record once, then hands it to the
//!   program by one store;
//! - **withdraw**: one store, in program order with the thread's own switches; the program writes
//!   nothing after it;
//! - **before entry**: clears `preempted` if it is still set. This is the last of three layers: the
//!   switch-in clears it; so does a timer interrupt, if the switch-in was not traced.
//!
//! With the classic program, the thread also adds run delay to steal before entry. The program
//! kicks it out of the guest for that.

use std::ffi::c_int;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use protocol::VcpuId;

use super::overlay::Overlay;
use super::{Counts, INIT_IS_MISSED, Inits, Publication, Publisher, PublisherKind};
use crate::bpf::{self, AttachedThread, Program, RecordAddr};
use crate::error::StealTimeError;
use crate::host_vm::HostVm;
use host::cpus::Cpus;
use host::perf::CpuClock;
use host::stats;

/// A switch-in that was not traced is detected within this time.
const HEAL_PERIOD: Duration = Duration::from_micros(900);

const STEAL_IS_LATE: &str = "steal is written by the vCPU's thread, up to 1 ms after `preempted` is \
                             cleared (publisher bpf writes both at once; it needs \
                             CONFIG_DEBUG_INFO_BTF and Linux 6.9)";

/// The publisher of one VM that uses a BPF program.
#[derive(Debug)]
pub struct BpfPublisher {
    program: Arc<Program>,
    overlay: Overlay,
    /// Timer interrupts that make the program check the vCPU that runs.
    clock: io::Result<CpuClock>,
    kick_signal: Option<c_int>,
    /// The program ignores each `lose_every`-th switch-in, to inject a fault; 0: none.
    lose_every: u64,
}

impl BpfPublisher {
    /// Creates a publisher of records in `vm`'s memory, for vCPU threads that use `cpus`.
    ///
    /// The program ignores each `lose_every`-th switch-in, to inject a fault; 0 for none.
    ///
    /// # Errors
    /// [`StealTimeError::NoKickSignal`] for a program that needs a signal.
    pub fn new(
        program: Arc<Program>,
        vm: Arc<dyn HostVm>,
        cpus: &Cpus,
        lose_every: u64,
    ) -> Result<Self, StealTimeError> {
        let kick_signal = match (program.is_classic(), vm.kick_signal()) {
            (true, None) => return Err(StealTimeError::NoKickSignal(program.kind())),
            (_, signal) => signal,
        };
        let overlay = Overlay::new(vm, Arc::clone(&program));
        Ok(Self { program, overlay, clock: CpuClock::start(cpus, HEAL_PERIOD), kick_signal, lose_every })
    }
}

impl Publisher for BpfPublisher {
    fn kind(&self) -> PublisherKind {
        self.program.kind()
    }

    fn attach(&self, vcpu: VcpuId) -> Result<Option<Box<dyn Publication + '_>>, StealTimeError> {
        let attached = self.program.attach_current_thread(vcpu)?;
        attached.slot().lose_every(self.lose_every);
        if let Some(signal) = self.kick_signal {
            attached.slot().set_kick_signal(signal);
        }
        let writes_steal = self.program.is_classic();
        if writes_steal {
            // A host without the figure is found out here, not at the guest's first MSR write
            stats::own_run_delay_ns().map_err(StealTimeError::RunDelay)?;
        }
        Ok(Some(Box::new(BpfPublication {
            attached,
            writes_steal,
            overlay: &self.overlay,
            cleared_at_entry: 0,
            deschedules: 0,
            addr: None,
            is_paused: false,
        })))
    }

    fn unlogged_pages(&self) -> Option<Vec<u64>> {
        Some(self.overlay.pages())
    }

    fn counts_at_rest(&self, vcpu: VcpuId) -> Option<bpf::SwitchCounts> {
        Some(self.program.slot(vcpu).counts())
    }

    fn limits(&self) -> Vec<String> {
        let mut limits = Vec::new();
        if let Err(error) = &self.clock {
            limits.push(format!(
                "a switch-in that is not traced is detected by the host's tick only, not by a timer of \
                 its own ({error}; grant CAP_PERFMON)"
            ));
        }
        if self.program.is_classic() {
            limits.push(STEAL_IS_LATE.to_owned());
        }
        if !self.program.detects_init() {
            limits.push(INIT_IS_MISSED.to_owned());
        }
        if self.lose_every > 0 {
            limits.push(format!("it ignores one switch-in in {}, as requested", self.lose_every));
        }
        limits
    }
}

/// The publication of one vCPU, owned by its thread.
#[derive(Debug)]
struct BpfPublication<'p> {
    attached: AttachedThread<'p>,
    /// Whether the thread writes steal before each entry; if not, the program does.
    writes_steal: bool,
    overlay: &'p Overlay,
    cleared_at_entry: u64,
    deschedules: u64,
    addr: Option<RecordAddr>,
    /// Whether the vCPU is paused.
    is_paused: bool,
}

impl BpfPublication<'_> {
    /// Whether the record may be written: the vCPU is not paused, and no INIT waits for judgement.
    fn may_write(&self) -> bool {
        !self.is_paused && self.attached.slot().unjudged_inits().is_none()
    }

    /// Updates the record once and publishes, if it may be written.
    fn continue_publishing(&mut self) -> Result<(), StealTimeError> {
        if let Some(addr) = self.addr.filter(|_| self.may_write()) {
            self.update(addr, 0)?;
            self.attached.publish(addr);
        }
        Ok(())
    }

    /// Marks all run delay of this thread so far as contained in steal. Returns the part that was
    /// not (ns).
    fn account(&self) -> Result<u64, StealTimeError> {
        let run_delay_ns = stats::own_run_delay_ns().map_err(StealTimeError::RunDelay)?;
        Ok(self.attached.account(run_delay_ns))
    }

    /// Adds unpublished time to the record's steal, and clears `preempted`.
    fn update(&self, addr: RecordAddr, least_ns: u64) -> Result<(), StealTimeError> {
        let unpublished_ns = self.account()?;
        if let Some(record) = self.overlay.record(addr) {
            record.update(least_ns, unpublished_ns);
        }
        Ok(())
    }
}

impl Publication for BpfPublication<'_> {
    fn publish(&mut self, gpa: u64, least_ns: u64) -> Result<(), StealTimeError> {
        let Some(addr) = self.overlay.take(gpa)? else { return Ok(()) };
        self.addr = Some(addr);
        // As under KVM, steal counts from the vCPU's creation on, published or not. A switch
        // between this update and `publish` is not lost: the program continues from what is
        // accounted here
        self.update(addr, least_ns)?;
        if self.may_write() {
            self.attached.publish(addr);
        }
        Ok(())
    }

    fn withdraw(&mut self) {
        self.attached.withdraw();
        if let Some(addr) = self.addr.take() {
            self.overlay.give_back(addr);
        }
    }

    fn unjudged_inits(&mut self) -> Option<Inits> {
        let inits = self.attached.slot().unjudged_inits()?;
        // The program has withdrawn the record. This thread may have published one since
        self.attached.withdraw();
        Some(inits)
    }

    fn set_judged(&mut self, inits: Inits) -> Result<(), StealTimeError> {
        self.attached.slot().set_judged(inits);
        self.continue_publishing()
    }

    fn deschedule(&mut self) {
        self.deschedules += 1;
        self.attached.deschedule();
    }

    fn schedule(&mut self, descheduled_ns: u64) -> Result<(), StealTimeError> {
        self.attached.slot().add_descheduled_ns(descheduled_ns);
        // The thread's last switch-in came before this time was added, so publish it as after a
        // pause
        self.attached.withdraw();
        self.resume()
    }

    fn pause(&mut self) {
        self.is_paused = true;
        self.attached.withdraw();
    }

    fn discard_run_delay(&mut self, run_delay_ns: u64) -> u64 {
        self.attached.account(run_delay_ns)
    }

    fn resume(&mut self) -> Result<(), StealTimeError> {
        self.is_paused = false;
        self.continue_publishing()
    }

    fn before_entry(&mut self) {
        self.cleared_at_entry += u64::from(self.attached.clear_preempted());
        // `take_sched_in` comes before `addr`: until it is taken, the program kicks the thread
        // again
        if self.writes_steal
            && self.attached.slot().take_sched_in()
            && let Some(addr) = self.addr
            && self.may_write()
        {
            // If the run delay cannot be read, steal keeps its value
            let _ = self.update(addr, 0);
        }
    }

    fn counts(&self) -> Counts {
        let Self { cleared_at_entry, deschedules, .. } = *self;
        Counts { program: self.attached.counts(), cleared_at_entry, lost: 0, deschedules }
    }
}

impl Drop for BpfPublication<'_> {
    fn drop(&mut self) {
        self.withdraw();
    }
}
