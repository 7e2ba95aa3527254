//! The records: where they lie, and how a guest reads one.
//!
//! All records lie in one array, on pages that hold nothing else: the host lays its own pages over
//! them, and 64 records share one. The record of a vCPU is found as Linux finds per-CPU data, by an
//! offset from that of vCPU 0.

use core::mem::size_of;
use core::sync::atomic::{Ordering, fence};

use protocol::kvm::StealTime;
use protocol::{MAX_VCPUS, VcpuId};

/// A record, as the guest accesses it.
#[derive(Default)]
#[repr(transparent)]
pub struct Record(StealTime);

/// Pages of records. They hold nothing else.
#[repr(C, align(4096))]
pub struct Records([Record; MAX_VCPUS + 1]);

/// The records of all vCPUs. One extra record fills the last page.
pub static RECORDS: Records = Records([const { Record::new() }; MAX_VCPUS + 1]);

/// Offset of each vCPU's record from that of vCPU 0 (bytes).
pub static PER_VCPU_OFFSET: [usize; MAX_VCPUS] = {
    let mut offsets = [0; MAX_VCPUS];
    let mut vcpu = 0;
    while vcpu < MAX_VCPUS {
        offsets[vcpu] = vcpu * size_of::<Record>();
        vcpu += 1;
    }
    offsets
};

/// Attempts to read a record. The host may be preempted in the middle of an update.
const MAX_ATTEMPTS: u32 = 1024;

impl Record {
    /// Returns a record of zeros, as the guest must register it.
    pub const fn new() -> Self {
        Self(StealTime::new())
    }

    /// Reads steal (ns). Returns `None` if the host was updating the record in 1,024 attempts.
    pub fn steal_ns(&self) -> Option<u64> {
        for _ in 0..MAX_ATTEMPTS {
            if let Some(steal) = self.try_steal_ns() {
                return Some(steal);
            }
            core::hint::spin_loop();
        }
        None
    }

    /// Reads steal (ns) in one attempt. Returns `None` if the host is updating the record.
    pub fn try_steal_ns(&self) -> Option<u64> {
        let before = self.0.version.load(Ordering::Acquire);
        let steal = self.0.steal.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        let is_whole = before.is_multiple_of(2) && self.0.version.load(Ordering::Relaxed) == before;
        is_whole.then_some(steal)
    }

    /// Reads the version, odd or even.
    pub fn version(&self) -> u32 {
        self.0.version.load(Ordering::Acquire)
    }

    /// Reads the flags.
    pub fn flags(&self) -> u32 {
        self.0.flags.load(Ordering::Acquire)
    }

    /// Reads `preempted`.
    pub fn preempted(&self) -> u8 {
        self.0.preempted.load(Ordering::Relaxed)
    }

    /// Adds `bits` to `preempted` if it is `expected`, as a guest does that wants a TLB flush.
    /// Returns whether it was.
    pub fn add_preempted_bits(&self, expected: u8, bits: u8) -> bool {
        let added = expected | bits;
        self.0.preempted.compare_exchange(expected, added, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Stores `preempted`, as a host would. Only for records that no host writes.
    pub fn set_preempted(&self, value: u8) {
        self.0.preempted.store(value, Ordering::Relaxed);
    }

    /// Stores the version, as a guest may leave it before it registers the record.
    pub fn set_version(&self, version: u32) {
        self.0.version.store(version, Ordering::Release);
    }

    /// Fills the padding with `value`.
    pub fn fill_padding(&self, value: u8) {
        for byte in &self.0.padding {
            byte.store(value, Ordering::Relaxed);
        }
    }

    /// Copies the record. See [`StealTime::bytes`].
    pub fn bytes(&self) -> [u8; size_of::<StealTime>()] {
        self.0.bytes()
    }

    /// Returns whether all padding bytes are `value`.
    pub fn padding_is(&self, value: u8) -> bool {
        self.0.padding.iter().all(|byte| byte.load(Ordering::Relaxed) == value)
    }
}

impl Records {
    /// Iterates over all records, those of absent vCPUs included.
    pub fn iter(&self) -> core::slice::Iter<'_, Record> {
        self.0.iter()
    }
}

impl<'a> IntoIterator for &'a Records {
    type Item = &'a Record;
    type IntoIter = core::slice::Iter<'a, Record>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Returns the record of `vcpu`.
pub fn record_of(vcpu: VcpuId) -> &'static Record {
    &RECORDS.0[vcpu.index()]
}

/// Support for tests that play the host.
#[cfg(test)]
#[cfg(not(modelled))]
pub(crate) mod testing {
    use std::sync::{Mutex, PoisonError};

    use super::*;

    /// Runs `test` alone. The records are global, so one test at a time may set bytes in them.
    pub(crate) fn exclusively<R>(test: impl FnOnce() -> R) -> R {
        static LOCK: Mutex<()> = Mutex::new(());
        let _guard = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
        test()
    }

    pub(crate) fn set_preempted(vcpu: VcpuId, value: u8) {
        record_of(vcpu).set_preempted(value);
    }
}

#[cfg(test)]
#[cfg(not(modelled))]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use super::*;

    #[test]
    fn offsets_lead_from_the_first_record_to_each() {
        for vcpu in VcpuId::first(MAX_VCPUS) {
            let distance = std::ptr::from_ref(record_of(vcpu)).addr() - std::ptr::from_ref(&RECORDS).addr();
            assert_eq!(PER_VCPU_OFFSET[vcpu.index()], distance);
        }
        assert_eq!(size_of::<Records>() % 4096, 0, "nothing else lies on the records' pages");
    }

    #[test]
    fn steal_under_update_is_not_read() {
        let record = Record::new();
        record.0.steal.store(7, Ordering::Relaxed);
        assert_eq!(record.steal_ns(), Some(7));
        record.set_version(3);
        assert_eq!(record.steal_ns(), None);
    }

    #[test]
    fn reader_beside_a_writer_sees_steal_only_grow() {
        let (record, done) = (Record::new(), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..=200_000_u64 {
                    let version = record.0.version.load(Ordering::Relaxed);
                    record.0.version.store(version.wrapping_add(1), Ordering::Relaxed);
                    fence(Ordering::Release);
                    // A reader must never see this intermediate value.
                    record.0.steal.store(u64::MAX, Ordering::Relaxed);
                    record.0.steal.store(round, Ordering::Relaxed);
                    record.0.version.store(version.wrapping_add(2), Ordering::Release);
                }
                done.store(true, Ordering::Release);
            });
            let mut last = 0;
            while !done.load(Ordering::Acquire) {
                if let Some(steal) = record.steal_ns() {
                    assert!((last..=200_000).contains(&steal), "{last} then {steal}");
                    last = steal;
                }
            }
        });
    }
}
