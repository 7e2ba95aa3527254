//! The emulated MSR: its value, and what a guest's access does.
//!
//! To the letter of KVM's `kvm_set_msr_common` and `kvm_get_msr_common`:
//!
//! - a reserved bit faults, and neither the value nor publication changes;
//! - any other value is stored and reads back as it was written;
//! - bit 0 clear stops publication before the write completes, and leaves the record as it is;
//! - bit 0 set moves publication to the new record, which is updated once before the guest goes on;
//! - an address outside RAM is taken in silence: nothing is written, nothing faults;
//! - INIT clears it, and stops publication;
//! - without the feature in CPUID every access faults.
//!
//! The filter makes KVM hand the accesses over. KVM's own copy of the MSR stays 0, so KVM never writes a record:
//! one writer.

use kvm_ioctls::{Cap, MsrExitReason, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd};
use protocol::steal_time::{MSR_STEAL_TIME, Registration};

use crate::publisher::{Counts, Publication, PublisherError};

/// The host's KVM cannot hand MSR accesses over.
#[derive(Debug, thiserror::Error)]
pub enum MsrFilterError {
    /// A capability is missing.
    #[error(
        "KVM here cannot hand MSR accesses to userspace: {0} is missing (Linux 5.10 or newer, or try --publisher kernel)"
    )]
    Missing(&'static str),
    /// A call failed.
    #[error("Cannot set KVM's MSR filter")]
    Refused(#[from] kvm_ioctls::Error),
}

/// Makes KVM exit to us on each access to the steal-time MSR. Before the first vCPU runs.
///
/// # Errors
/// [`MsrFilterError`]; nothing is filtered then.
pub fn filter(vm: &VmFd) -> Result<(), MsrFilterError> {
    if !vm.check_extension(Cap::X86UserSpaceMsr) {
        return Err(MsrFilterError::Missing("KVM_CAP_X86_USER_SPACE_MSR"));
    }
    if !vm.check_extension(Cap::X86MsrFilter) {
        return Err(MsrFilterError::Missing("KVM_CAP_X86_MSR_FILTER"));
    }
    let mut exits = kvm_bindings::kvm_enable_cap {
        cap: kvm_bindings::KVM_CAP_X86_USER_SPACE_MSR,
        ..kvm_bindings::kvm_enable_cap::default()
    };
    exits.args[0] = u64::from(MsrExitReason::Filter.bits());
    vm.enable_cap(&exits)?;
    // A bit of 0 denies; all else is allowed.
    let denied = MsrFilterRange {
        flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
        base: MSR_STEAL_TIME,
        msr_count: 1,
        bitmap: &[0],
    };
    vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &[denied])?;
    Ok(())
}

/// What becomes of a guest's access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access<T> {
    /// It completes, with this.
    Done(T),
    /// It raises #GP.
    Fault,
}

/// One vCPU's steal-time MSR. Lives on the vCPU's thread.
#[derive(Debug)]
pub struct StealTimeMsr<'p> {
    value: u64,
    /// `None` when CPUID does not have the feature.
    publication: Option<Box<dyn Publication + 'p>>,
}

impl<'p> StealTimeMsr<'p> {
    /// The MSR after reset: 0. Without a publication it does not exist.
    pub fn new(publication: Option<Box<dyn Publication + 'p>>) -> Self {
        Self { value: 0, publication }
    }

    /// RDMSR of `index`.
    pub fn read(&mut self, index: u32) -> Access<u64> {
        self.notice_init();
        match self.publication {
            Some(_) if index == MSR_STEAL_TIME => Access::Done(self.value),
            _ => Access::Fault,
        }
    }

    /// WRMSR of `value` to `index`, on the vCPU's own thread, outside the guest.
    ///
    /// # Errors
    /// The publisher's, when the host refuses what registration takes; publication is off then.
    pub fn write(&mut self, index: u32, value: u64) -> Result<Access<()>, PublisherError> {
        if index == MSR_STEAL_TIME { self.set(value, 0) } else { Ok(Access::Fault) }
    }

    /// What the guest would read; `None` where it would fault.
    pub fn value(&self) -> Option<u64> {
        self.publication.as_ref().map(|_| self.value)
    }

    /// As a write of `value`, after which the record's steal is `least_ns` at least: it was so much when it was saved.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    pub fn set(&mut self, value: u64, least_ns: u64) -> Result<Access<()>, PublisherError> {
        self.notice_init();
        let Some(publication) = &mut self.publication else { return Ok(Access::Fault) };
        let Ok(registration) = Registration::from_msr(value) else {
            return Ok(Access::Fault);
        };
        self.value = value;
        publication.withdraw();
        if let Registration::At { gpa } = registration {
            publication.publish(gpa, least_ns)?;
        }
        Ok(Access::Done(()))
    }

    /// The guest is paused: its record is not written until [`rise`](Self::rise).
    pub fn rest(&mut self) {
        self.notice_init();
        if let Some(publication) = &mut self.publication {
            publication.rest();
        }
    }

    /// The guest does not pay for what its thread, with a run delay of `run_delay_ns` by now, has waited since
    /// [`rest`](Self::rest). Gives how much that was (ns), where we publish.
    pub fn forget_waiting(&mut self, run_delay_ns: u64) -> u64 {
        self.publication.as_mut().map_or(0, |publication| publication.forget_waiting(run_delay_ns))
    }

    /// The guest goes on.
    ///
    /// # Errors
    /// The publisher's, when the host refuses; publication is off then.
    pub fn rise(&mut self) -> Result<(), PublisherError> {
        self.publication.as_mut().map_or(Ok(()), |publication| publication.rise())
    }

    /// The vCPU is kept from running, and its byte says so.
    pub fn park(&mut self) {
        self.notice_init();
        if let Some(publication) = &mut self.publication {
            publication.park();
        }
    }

    /// It may run again, having wanted to for `parked_ns` until its thread was woken.
    ///
    /// # Errors
    /// The publisher's, when the host refuses; publication is off then.
    pub fn unpark(&mut self, parked_ns: u64) -> Result<(), PublisherError> {
        self.publication.as_mut().map_or(Ok(()), |publication| publication.unpark(parked_ns))
    }

    /// What the publisher counted for this vCPU; `None` where nobody counts.
    pub fn counts(&self) -> Option<Counts> {
        self.publication.as_ref().map(|publication| publication.counts())
    }

    /// INIT has cleared the MSR without a word to us: only the publisher can know.
    fn notice_init(&mut self) {
        if self.publication.as_mut().is_some_and(|publication| publication.take_init()) {
            self.value = 0;
        }
    }

    /// The last thing before the guest is entered: an INIT is noticed, and a byte that says preempted is cleared.
    pub fn before_entry(&mut self) {
        self.notice_init();
        if let Some(publication) = &mut self.publication {
            publication.before_entry();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Notes what it is asked, and is sent INIT when told so.
    #[derive(Debug, Default, Clone)]
    struct Notes(Arc<Mutex<Vec<Option<u64>>>>, Arc<AtomicBool>);

    impl Publication for Notes {
        fn publish(&mut self, gpa: u64, _least_ns: u64) -> Result<(), PublisherError> {
            self.0.lock().unwrap().push(Some(gpa));
            Ok(())
        }

        fn withdraw(&mut self) {
            self.0.lock().unwrap().push(None);
        }

        fn take_init(&mut self) -> bool {
            self.1.swap(false, Ordering::Relaxed)
        }

        fn park(&mut self) {}

        fn unpark(&mut self, _parked_ns: u64) -> Result<(), PublisherError> {
            Ok(())
        }

        fn rest(&mut self) {}

        fn forget_waiting(&mut self, _run_delay_ns: u64) -> u64 {
            0
        }

        fn rise(&mut self) -> Result<(), PublisherError> {
            Ok(())
        }

        fn before_entry(&mut self) {}

        fn counts(&self) -> Counts {
            Counts::default()
        }
    }

    fn msr() -> (StealTimeMsr<'static>, Notes) {
        let notes = Notes::default();
        (StealTimeMsr::new(Some(Box::new(notes.clone()))), notes)
    }

    #[test]
    fn written_value_reads_back_and_moves_publication() {
        let (mut msr, notes) = msr();
        assert_eq!(msr.read(MSR_STEAL_TIME), Access::Done(0));
        for value in [0x1041, 0x2081, 0x2080] {
            assert_eq!(msr.write(MSR_STEAL_TIME, value).unwrap(), Access::Done(()));
            assert_eq!(msr.read(MSR_STEAL_TIME), Access::Done(value));
        }
        assert_eq!(*notes.0.lock().unwrap(), [None, Some(0x1040), None, Some(0x2080), None]);
    }

    #[test]
    fn reserved_bit_faults_and_changes_nothing() {
        let (mut msr, notes) = msr();
        assert_eq!(msr.write(MSR_STEAL_TIME, 0x1041).unwrap(), Access::Done(()));
        let before = notes.0.lock().unwrap().len();
        assert_eq!(msr.write(MSR_STEAL_TIME, 0x3f).unwrap(), Access::Fault);
        assert_eq!(msr.write(MSR_STEAL_TIME, 0x1002).unwrap(), Access::Fault);
        assert_eq!(msr.read(MSR_STEAL_TIME), Access::Done(0x1041));
        assert_eq!(notes.0.lock().unwrap().len(), before);
    }

    #[test]
    fn init_clears_the_value_before_it_is_read_written_or_the_guest_entered() {
        let (mut msr, notes) = msr();
        assert_eq!(msr.write(MSR_STEAL_TIME, 0x1041).unwrap(), Access::Done(()));
        notes.1.store(true, Ordering::Relaxed);
        assert_eq!(msr.read(MSR_STEAL_TIME), Access::Done(0));
        assert_eq!(msr.write(MSR_STEAL_TIME, 0x2041).unwrap(), Access::Done(()));
        notes.1.store(true, Ordering::Relaxed);
        msr.before_entry();
        assert_eq!(msr.value(), Some(0));
        notes.1.store(true, Ordering::Relaxed);
        assert_eq!(msr.write(MSR_STEAL_TIME, 0x3041).unwrap(), Access::Done(()));
        assert_eq!(msr.value(), Some(0x3041));
    }

    #[test]
    fn without_the_feature_and_for_other_msrs_every_access_faults() {
        let mut absent = StealTimeMsr::new(None);
        absent.before_entry();
        assert_eq!(absent.read(MSR_STEAL_TIME), Access::Fault);
        assert_eq!(absent.write(MSR_STEAL_TIME, 0).unwrap(), Access::Fault);
        let (mut msr, _) = msr();
        assert_eq!(msr.read(MSR_STEAL_TIME - 1), Access::Fault);
        assert_eq!(msr.write(MSR_STEAL_TIME + 1, 0x1041).unwrap(), Access::Fault);
    }
}
