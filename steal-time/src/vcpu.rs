//! One vCPU's steal time: the emulated MSR, its record, pause and resume, save and restore.
//!
//! The MSR follows KVM's `kvm_set_msr_common` and `kvm_get_msr_common` (`arch/x86/kvm/x86.c`):
//!
//! - a reserved bit faults; neither the value nor publication changes;
//! - any other value is stored and reads back as written;
//! - bit 0 clear stops publication before the write completes and leaves the record as it is;
//! - bit 0 set moves publication to the new record, which is updated once before the guest goes on;
//! - an address outside RAM is accepted: nothing is written, nothing faults;
//! - INIT clears the MSR and stops publication;
//! - without the feature in CPUID every access faults.
//!
//! KVM's own copy of the MSR stays disabled while the library emulates it, so KVM never writes a
//! record: one writer. It only bears witness of INIT ([`InitWitness`]).

use std::sync::Arc;

use kvm_ioctls::VcpuFd;
use protocol::VcpuId;
use protocol::kvm::{MSR_STEAL_TIME, Registration};

use crate::error::StealTimeError;
use crate::host_vm::HostVm;
use crate::init_witness::InitWitness;
use crate::kvm_msr;
use crate::publisher::record::GuestRecord;
use crate::publisher::{Counts, Inits, MsrOwner, Publication};
use crate::saved::SavedVcpu;

/// The result of a guest's access to an MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access<T> {
    /// The access completes, with this value.
    Done(T),
    /// The access raises #GP.
    Fault,
}

impl<T> Access<T> {
    /// Returns the value for the `error` field of KVM's exit: 1 makes the access raise #GP.
    pub fn error(&self) -> u8 {
        u8::from(matches!(self, Self::Fault))
    }
}

/// The steal time of one vCPU, owned by the vCPU's thread. Dropping it detaches the thread.
#[derive(Debug)]
pub struct VcpuStealTime<'p> {
    vcpu: VcpuId,
    owner: MsrOwner,
    vm: Arc<dyn HostVm>,
    msr: u64,
    /// `None` unless the library emulates the MSR.
    publication: Option<Box<dyn Publication + 'p>>,
    /// `None` until [`watch_init`](Self::watch_init), and where KVM refuses it.
    witness: Option<InitWitness>,
}

impl<'p> VcpuStealTime<'p> {
    /// Creates the steal time of a vCPU after reset: the MSR is 0.
    pub(crate) fn new(
        vcpu: VcpuId,
        owner: MsrOwner,
        vm: Arc<dyn HostVm>,
        publication: Option<Box<dyn Publication + 'p>>,
    ) -> Self {
        Self { vcpu, owner, vm, msr: 0, publication, witness: None }
    }

    /// Lets KVM's own copy of the MSR of vCPU `fd`, whose CPUID is set, show whether INIT has reset
    /// the vCPU.
    ///
    /// A publisher that detects INIT cannot always tell the VM that it happens in. Without this
    /// call, each INIT to the same APIC ID counts as this vCPU's, unless another VM's vCPU sent it.
    /// Without a kick signal ([`HostVm::kick_signal`]) the call has no effect: nothing would bring
    /// the vCPU out of the guest to judge.
    ///
    /// # Errors
    /// [`StealTimeError::Witness`] if the host has no descriptor left.
    pub fn watch_init(&mut self, fd: &VcpuFd) -> Result<(), StealTimeError> {
        if self.publication.is_some() && self.vm.kick_signal().is_some() {
            self.witness = InitWitness::plant(fd).map_err(StealTimeError::Witness)?;
        }
        Ok(())
    }

    /// Emulates RDMSR of `index` (`KVM_EXIT_X86_RDMSR`).
    pub fn rdmsr(&mut self, index: u32) -> Access<u64> {
        self.detect_init();
        match self.publication {
            Some(_) if index == MSR_STEAL_TIME => Access::Done(self.msr),
            _ => Access::Fault,
        }
    }

    /// Emulates WRMSR of `value` to `index` (`KVM_EXIT_X86_WRMSR`). The first record on a guest
    /// page stops all vCPUs for a moment.
    ///
    /// # Errors
    /// [`StealTimeError`] if the host refuses what registration needs. Publication is off then.
    pub fn wrmsr(&mut self, index: u32, value: u64) -> Result<Access<()>, StealTimeError> {
        if index == MSR_STEAL_TIME { self.register(value, 0) } else { Ok(Access::Fault) }
    }

    /// Writes `value` to the MSR. Steal in the new record is at least `least_ns`.
    fn register(&mut self, value: u64, least_ns: u64) -> Result<Access<()>, StealTimeError> {
        self.detect_init();
        let Some(publication) = &mut self.publication else { return Ok(Access::Fault) };
        let Ok(registration) = Registration::from_msr(value) else {
            return Ok(Access::Fault);
        };
        self.msr = value;
        publication.withdraw();
        if let Registration::At { gpa } = registration {
            publication.publish(gpa, least_ns)?;
        }
        Ok(Access::Done(()))
    }

    /// Judges INITs that the vCPU may have received. Called after each `KVM_RUN` that returned
    /// `EINTR`.
    ///
    /// Only then is an INIT on its way to the vCPU certain to have arrived, with no exit left that
    /// KVM completes at the next entry. The publisher kicks the vCPU for it, if it can
    /// ([`HostVm::kick_signal`]).
    ///
    /// # Errors
    /// [`StealTimeError`] if the host refuses. Publication is off then.
    pub fn after_interruption(&mut self) -> Result<(), StealTimeError> {
        let Some(inits) = self.detect_init() else { return Ok(()) };
        if !inits.is_settled {
            return Ok(());
        }
        if let Some(witness) = &self.witness {
            witness.process_init();
            self.detect_init();
        }
        self.publication.as_mut().map_or(Ok(()), |publication| publication.set_judged(inits))
    }

    /// Detects INIT and clears `preempted`. Called last before each `KVM_RUN`.
    pub fn before_entry(&mut self) {
        self.detect_init();
        if let Some(publication) = &mut self.publication {
            publication.before_entry();
        }
    }

    /// Stops writing to the record until [`resume`](Self::resume), and clears `preempted`.
    pub fn pause(&mut self) {
        self.detect_init();
        if let Some(publication) = &mut self.publication {
            publication.pause();
        }
    }

    /// Discards the run delay that the vCPU thread accrued since [`pause`](Self::pause): it is not
    /// steal.
    ///
    /// `run_delay_ns` is the thread's run delay so far. Returns the discarded time (ns); 0 without
    /// a publisher.
    pub fn discard_run_delay(&mut self, run_delay_ns: u64) -> u64 {
        self.publication.as_mut().map_or(0, |publication| publication.discard_run_delay(run_delay_ns))
    }

    /// Updates the record once and publishes again.
    ///
    /// # Errors
    /// [`StealTimeError`] if the host refuses. Publication is off then.
    pub fn resume(&mut self) -> Result<(), StealTimeError> {
        self.detect_init();
        self.publication.as_mut().map_or(Ok(()), |publication| publication.resume())
    }

    /// Sets `preempted`: the monitor keeps the vCPU from running until
    /// [`schedule`](Self::schedule).
    pub fn deschedule(&mut self) {
        self.detect_init();
        if let Some(publication) = &mut self.publication {
            publication.deschedule();
        }
    }

    /// Adds `descheduled_ns` to steal and clears `preempted`: the vCPU may run again.
    ///
    /// `descheduled_ns` is the time since [`deschedule`](Self::deschedule) for which the thread
    /// slept. Steal also grows by the thread's run delay. So the time must contain none, nor the
    /// thread's CPU time, nor the time for which the process was stopped
    /// (`host::thread_times::RunningTime`).
    ///
    /// # Errors
    /// [`StealTimeError`] if the host refuses. Publication is off then.
    pub fn schedule(&mut self, descheduled_ns: u64) -> Result<(), StealTimeError> {
        self.detect_init();
        self.publication.as_mut().map_or(Ok(()), |publication| publication.schedule(descheduled_ns))
    }

    /// Returns what the publisher counted for this vCPU; `None` if no publisher counts.
    pub fn counts(&self) -> Option<Counts> {
        self.publication.as_ref().map(|publication| publication.counts())
    }

    /// Returns the MSR as the guest would read it; `None` if the access would fault.
    pub fn msr(&self, fd: &VcpuFd) -> Option<u64> {
        match self.owner {
            MsrOwner::Monitor => self.publication.as_ref().map(|_| self.msr),
            MsrOwner::Kernel => kvm_msr::read(fd, MSR_STEAL_TIME),
            MsrOwner::Absent => None,
        }
    }

    /// Returns the registered record; `None` if the guest registered none, or one outside RAM.
    pub fn record(&self, fd: &VcpuFd) -> Option<GuestRecord> {
        match Registration::from_msr(self.msr(fd)?) {
            Ok(Registration::At { gpa }) => GuestRecord::at(&self.vm, gpa),
            _ => None,
        }
    }

    /// Returns what a snapshot must hold of this vCPU. Called while paused.
    pub fn save(&self, fd: &VcpuFd) -> SavedVcpu {
        let steal_ns = self.record(fd).map_or(0, |record| record.steal_ns());
        SavedVcpu { msr: self.msr(fd).unwrap_or(0), steal_ns }
    }

    /// Restores `saved`, which [`SavedStealTime::check`](crate::SavedStealTime::check) has checked.
    /// Called while paused.
    ///
    /// # Errors
    /// [`StealTimeError`] if the host refuses what registration needs, or KVM refuses the value.
    pub fn restore(&mut self, fd: &VcpuFd, saved: SavedVcpu) -> Result<(), StealTimeError> {
        let SavedVcpu { msr, steal_ns } = saved;
        match self.owner {
            MsrOwner::Absent => {}
            MsrOwner::Monitor => {
                self.register(msr, steal_ns)?;
            }
            MsrOwner::Kernel => {
                // KVM adds to the record that it finds, and writes nothing before the next entry
                if !kvm_msr::write(fd, MSR_STEAL_TIME, msr) {
                    return Err(StealTimeError::Restore { vcpu: self.vcpu, msr });
                }
                if let Some(record) = self.record(fd) {
                    record.update(steal_ns, 0);
                }
            }
        }
        Ok(())
    }

    /// INIT clears the MSR inside `KVM_RUN`; only the publisher can detect it. Returns the INITs
    /// that are still to be judged.
    fn detect_init(&mut self) -> Option<Inits> {
        let publication = self.publication.as_mut()?;
        let inits = publication.unjudged_inits()?;
        let Some(witness) = &self.witness else {
            self.msr = 0;
            publication.withdraw();
            // Without a record it touches nothing, so it cannot fail
            let _ = publication.set_judged(inits);
            return None;
        };
        if witness.take_reset() {
            self.msr = 0;
            publication.withdraw();
        }
        Some(inits)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::bpf::Slot;
    use crate::host_vm::tests::Memory;

    /// Logs the calls of `publish` (an address) and `withdraw` (`None`). The slot shows INITs.
    #[derive(Debug, Default, Clone)]
    struct Calls(Arc<Mutex<Vec<Option<u64>>>>, Arc<Slot>);

    impl Publication for Calls {
        fn publish(&mut self, gpa: u64, _least_ns: u64) -> Result<(), StealTimeError> {
            self.0.lock().unwrap().push(Some(gpa));
            Ok(())
        }

        fn withdraw(&mut self) {
            self.0.lock().unwrap().push(None);
        }

        fn unjudged_inits(&mut self) -> Option<Inits> {
            self.1.unjudged_inits()
        }

        fn set_judged(&mut self, inits: Inits) -> Result<(), StealTimeError> {
            self.1.set_judged(inits);
            Ok(())
        }

        fn deschedule(&mut self) {}

        fn schedule(&mut self, _descheduled_ns: u64) -> Result<(), StealTimeError> {
            Ok(())
        }

        fn pause(&mut self) {}

        fn discard_run_delay(&mut self, _run_delay_ns: u64) -> u64 {
            0
        }

        fn resume(&mut self) -> Result<(), StealTimeError> {
            Ok(())
        }

        fn before_entry(&mut self) {}

        fn counts(&self) -> Counts {
            Counts::default()
        }
    }

    fn new(publication: Option<Box<dyn Publication>>) -> VcpuStealTime<'static> {
        VcpuStealTime::new(VcpuId::BOOT, MsrOwner::Monitor, Memory::mib(1), publication)
    }

    fn msr() -> (VcpuStealTime<'static>, Calls) {
        let calls = Calls::default();
        (new(Some(Box::new(calls.clone()))), calls)
    }

    #[test]
    fn written_value_reads_back_and_moves_publication() {
        let (mut msr, calls) = msr();
        assert_eq!(msr.rdmsr(MSR_STEAL_TIME), Access::Done(0));
        for value in [0x1041, 0x2081, 0x2080] {
            assert_eq!(msr.wrmsr(MSR_STEAL_TIME, value).unwrap(), Access::Done(()));
            assert_eq!(msr.rdmsr(MSR_STEAL_TIME), Access::Done(value));
        }
        assert_eq!(*calls.0.lock().unwrap(), [None, Some(0x1040), None, Some(0x2080), None]);
    }

    #[test]
    fn reserved_bit_faults_and_changes_nothing() {
        let (mut msr, calls) = msr();
        assert_eq!(msr.wrmsr(MSR_STEAL_TIME, 0x1041).unwrap(), Access::Done(()));
        let before = calls.0.lock().unwrap().len();
        assert_eq!(msr.wrmsr(MSR_STEAL_TIME, 0x3f).unwrap(), Access::Fault);
        assert_eq!(msr.wrmsr(MSR_STEAL_TIME, 0x1002).unwrap(), Access::Fault);
        assert_eq!(msr.rdmsr(MSR_STEAL_TIME), Access::Done(0x1041));
        assert_eq!(calls.0.lock().unwrap().len(), before);
    }

    /// Without a witness each INIT counts as this vCPU's, once.
    #[test]
    fn init_clears_the_value_before_it_is_read_written_or_the_guest_entered() {
        let (mut msr, calls) = msr();
        assert_eq!(msr.wrmsr(MSR_STEAL_TIME, 0x1041).unwrap(), Access::Done(()));
        calls.1.simulate_init();
        assert_eq!(msr.rdmsr(MSR_STEAL_TIME), Access::Done(0));
        assert_eq!(msr.wrmsr(MSR_STEAL_TIME, 0x2041).unwrap(), Access::Done(()));
        msr.before_entry();
        assert_eq!(msr.msr, 0x2041, "the guest wrote it after the INIT");
        calls.1.simulate_init();
        msr.before_entry();
        assert_eq!(msr.msr, 0);
    }

    #[test]
    fn without_the_feature_and_for_other_msrs_every_access_faults() {
        let mut absent = new(None);
        absent.before_entry();
        assert_eq!(absent.rdmsr(MSR_STEAL_TIME), Access::Fault);
        assert_eq!(absent.wrmsr(MSR_STEAL_TIME, 0).unwrap(), Access::Fault);
        let (mut msr, _) = msr();
        assert_eq!(msr.rdmsr(MSR_STEAL_TIME - 1), Access::Fault);
        assert_eq!(msr.wrmsr(MSR_STEAL_TIME + 1, 0x1041).unwrap(), Access::Fault);
    }
}
