//! The publishers `bpf` and `bpf-classic`: the program writes in the context switch, the vCPU's thread does the rest.
//!
//! What the thread does, always outside the guest and about its own record only:
//!
//! - registration: finds the record's place, makes the first update, then hands the record over by one store;
//! - withdrawal: one store, in program order with the thread's own switches, after which nothing is written;
//! - before each entry: a byte that is still set is cleared. It is the last of three layers: the switch-in clears
//!   it, a timer's interrupt clears it where a switch-in went untraced, and so does this. Where the program is the classic
//!   one, this is also where the thread tells its steal; a timer makes it leave the guest for that.

use std::ffi::c_int;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use protocol::VcpuId;

use super::overlay::Overlay;
use super::{Counts, INIT_GOES_UNNOTICED, Publication, Publisher, PublisherKind, StealTimeError};
use crate::bpf::{self, AttachedThread, Program, RecordAddr};
use crate::host_vm::HostVm;
use host::cpus::Cpus;
use host::perf::CpuClock;
use host::stats::{self, RunDelay};

/// Publishes by BPF for one VM.
#[derive(Debug)]
pub struct BpfPublisher {
    program: Arc<Program>,
    overlay: Overlay,
    /// What makes the program look at whoever runs.
    clock: io::Result<CpuClock>,
    kick_signal: Option<c_int>,
    /// Each so many-th switch-in is overlooked, on purpose; 0: none.
    lose_every: u64,
}

impl BpfPublisher {
    /// Publishes into records in `vm`'s memory, for vCPU threads that use `cpus`. Of the switch-ins each `lose_every`-th
    /// is overlooked, on purpose; 0 for none.
    ///
    /// # Errors
    /// [`StealTimeError::NoKickSignal`] for a program that needs one.
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
        Ok(Self { program, overlay, clock: CpuClock::start(cpus, LONGEST_LIE), kick_signal, lose_every })
    }
}

/// A switch-in that was overlooked is found out after so long at most.
const LONGEST_LIE: Duration = Duration::from_micros(900);

const STEAL_IS_LATE: &str = "steal is told by the vCPU's thread, up to a millisecond after the byte says that the vCPU runs \
                             again (a kernel with CONFIG_DEBUG_INFO_BTF, and Linux 6.9, get --publisher bpf)";

impl Publisher for BpfPublisher {
    fn kind(&self) -> PublisherKind {
        self.program.kind()
    }

    fn attach(&self, vcpu: VcpuId) -> Result<Option<Box<dyn Publication + '_>>, StealTimeError> {
        let attached = self.program.attach_current_thread(vcpu)?;
        attached.slot().lose_every(self.lose_every);
        let signal = self.kick_signal.filter(|_| self.program.is_classic());
        let own_run_delay = if let Some(signal) = signal {
            attached.slot().set_kick_signal(signal);
            Some(RunDelay::of_this_thread().map_err(StealTimeError::RunDelay)?)
        } else {
            None
        };
        Ok(Some(Box::new(BpfPublication {
            attached,
            own_run_delay,
            overlay: &self.overlay,
            cleared_at_entry: 0,
            parks: 0,
            site: None,
            is_paused: false,
            inits: 0,
        })))
    }

    fn unlogged_pages(&self) -> Vec<u64> {
        self.overlay.pages()
    }

    fn counts_at_rest(&self, vcpu: VcpuId) -> Option<bpf::SwitchCounts> {
        Some(self.program.slot(vcpu).counts())
    }

    fn limits(&self) -> Vec<String> {
        let mut limits = Vec::new();
        if let Err(error) = &self.clock {
            limits.push(format!(
                "no timer of its own looks whether a switch-in was overlooked, only the host's tick ({error}; grant \
                 CAP_PERFMON)"
            ));
        }
        if self.program.is_classic() {
            limits.push(STEAL_IS_LATE.to_owned());
        }
        if !self.program.detects_init() {
            limits.push(INIT_GOES_UNNOTICED.to_owned());
        }
        if self.lose_every > 0 {
            limits.push(format!("it overlooks one switch-in in {}, on purpose", self.lose_every));
        }
        limits
    }
}

/// One vCPU's publication. Lives on the vCPU's thread.
#[derive(Debug)]
struct BpfPublication<'p> {
    attached: AttachedThread<'p>,
    /// What the thread tells its steal by, where the program does not.
    own_run_delay: Option<RunDelay>,
    overlay: &'p Overlay,
    cleared_at_entry: u64,
    parks: u64,
    site: Option<RecordAddr>,
    /// The program is not to write.
    is_paused: bool,
    /// INITs that were noticed.
    inits: u64,
}

impl BpfPublication<'_> {
    /// Takes all run delay of this thread so far for published, and gives what of it was not.
    fn account(&self) -> Result<u64, StealTimeError> {
        let run_delay_ns = match &self.own_run_delay {
            Some(run_delay) => run_delay.read_ns(),
            None => stats::own_run_delay_ns(),
        };
        let run_delay_ns = run_delay_ns.map_err(StealTimeError::RunDelay)?;
        Ok(self.attached.account(run_delay_ns))
    }

    /// Adds to the record what its steal lacks, and clears the byte.
    fn tell_steal(&self, site: RecordAddr, least_ns: u64) -> Result<(), StealTimeError> {
        let unpublished_ns = self.account()?;
        if let Some(record) = self.overlay.record(site) {
            record.update(least_ns, unpublished_ns);
        }
        Ok(())
    }
}

impl Publication for BpfPublication<'_> {
    fn publish(&mut self, gpa: u64, least_ns: u64) -> Result<(), StealTimeError> {
        let Some(site) = self.overlay.take(gpa)? else { return Ok(()) };
        self.site = Some(site);
        // Steal counts from the vCPU's first moment on, whether it was published or not, as KVM's does. A switch
        // between this reading and the hand-over is not lost: the program continues from what is accounted here.
        self.tell_steal(site, least_ns)?;
        if !self.is_paused {
            self.attached.publish(site);
        }
        Ok(())
    }

    fn withdraw(&mut self) {
        self.attached.withdraw();
        if let Some(site) = self.site.take() {
            self.overlay.give_back(site);
        }
    }

    fn take_init(&mut self) -> bool {
        let inits = self.attached.slot().inits();
        let is_new = inits != self.inits;
        if is_new {
            self.inits = inits;
            self.withdraw();
        }
        is_new
    }

    fn park(&mut self) {
        self.parks += 1;
        self.attached.deschedule();
    }

    fn unpark(&mut self, parked_ns: u64) -> Result<(), StealTimeError> {
        self.attached.slot().add_descheduled_ns(parked_ns);
        // The switch that brought the thread here knew nothing of it, so it is told as after a rest.
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
        if let Some(site) = self.site {
            self.tell_steal(site, 0)?;
            self.attached.publish(site);
        }
        Ok(())
    }

    fn before_entry(&mut self) {
        self.cleared_at_entry += u64::from(self.attached.clear_preempted());
        // Asked first: as long as it is to tell, it is kicked out of the guest again and again.
        if self.own_run_delay.is_some()
            && self.attached.slot().take_sched_in()
            && let Some(site) = self.site
            && !self.is_paused
        {
            // A thread that cannot read its own run delay any more tells what it has told so far.
            let _ = self.tell_steal(site, 0);
        }
    }

    fn counts(&self) -> Counts {
        let Self { cleared_at_entry, parks, .. } = *self;
        Counts { program: self.attached.counts(), cleared_at_entry, lost: 0, parks }
    }
}

impl Drop for BpfPublication<'_> {
    fn drop(&mut self) {
        self.withdraw();
    }
}
