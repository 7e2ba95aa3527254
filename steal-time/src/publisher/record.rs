//! The record, as the monitor writes it: atomic fields in a page that guest and BPF program share.
//!
//! The order of an update is KVM's (`record_steal_time`): version odd, steal, version even, then
//! `preempted`. x86 keeps stores in order, so `Release` binds only the compiler here. A reader on
//! another vCPU may read `preempted` late, but never a torn steal.
//!
//! Version and steal have one writer at a time. While the BPF program publishes, it alone writes
//! them, and the vCPU's thread stores single bytes. The thread updates the whole record only before
//! it hands it to the program.

#![expect(unsafe_code, reason = "views a record in a page of bytes, or of guest memory")]

use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use protocol::kvm::{PREEMPTED, StealTime};

use crate::host_vm::{HostVm, PAGE, PAGE_SIZE};

/// Size of a record (bytes).
pub const RECORD_SIZE: usize = size_of::<StealTime>();

/// A steal-time record in memory that guest, program and KVM also write.
#[derive(Debug)]
#[repr(transparent)]
pub struct Record(StealTime);

impl Record {
    /// Returns the record at `offset` of a page of the page map; `None` if it does not fit there,
    /// or is misaligned.
    #[expect(clippy::cast_ptr_alignment, reason = "alignment is checked before use")]
    pub fn in_page(page: &[AtomicU8; PAGE_SIZE], offset: usize) -> Option<&Self> {
        let place = page.get(offset..offset.checked_add(size_of::<Self>())?)?.as_ptr().cast::<Self>();
        if !place.is_aligned() {
            return None;
        }
        // SAFETY: 64 aligned bytes of the page begin there, and are borrowed as long as the page.
        // Any bytes are a valid record, whose fields are atomics, as the page's bytes are.
        Some(unsafe { &*place })
    }

    /// Raises steal to `least_ns` if it is less, adds `more_ns`, and clears `preempted`. The caller
    /// is the only writer.
    ///
    /// A version that the guest left odd is even afterwards, as under KVM.
    pub fn update(&self, least_ns: u64, more_ns: u64) {
        self.raise_steal(least_ns, more_ns);
        self.0.preempted.store(0, Ordering::Release);
    }

    /// Adds `more_ns` to steal, and does not touch `preempted`. The caller is the only writer.
    pub fn add_steal(&self, more_ns: u64) {
        self.raise_steal(0, more_ns);
    }

    fn raise_steal(&self, least_ns: u64, more_ns: u64) {
        let before = self.0.version.load(Ordering::Relaxed);
        let odd = before.wrapping_add(1 + (before & 1));
        self.0.version.store(odd, Ordering::Relaxed);
        let steal = self.0.steal.load(Ordering::Relaxed).max(least_ns);
        self.0.steal.store(steal.wrapping_add(more_ns), Ordering::Release);
        self.0.version.store(odd.wrapping_add(1), Ordering::Release);
    }

    /// Returns steal (ns). It may be torn while another thread writes it.
    pub fn steal_ns(&self) -> u64 {
        self.0.steal.load(Ordering::Acquire)
    }

    /// Returns steal (ns), or `None` if it was being written.
    pub fn try_steal_ns(&self) -> Option<u64> {
        let version = self.0.version.load(Ordering::Acquire);
        let steal = self.0.steal.load(Ordering::Acquire);
        let is_whole = version.is_multiple_of(2) && self.0.version.load(Ordering::Relaxed) == version;
        is_whole.then_some(steal)
    }

    /// Returns all bytes. They may be torn while another thread writes the record.
    pub fn bytes(&self) -> [u8; RECORD_SIZE] {
        self.0.bytes()
    }

    /// Sets `preempted`.
    pub fn set_preempted(&self) {
        self.0.preempted.store(PREEMPTED, Ordering::Release);
    }

    /// Returns `preempted`.
    pub fn preempted(&self) -> u8 {
        self.0.preempted.load(Ordering::Acquire)
    }

    /// Clears `preempted` if it is set. Returns whether it was.
    pub fn clear_preempted(&self) -> bool {
        // Load first: the cache line stays shared with the vCPUs that poll it
        let was_set = self.0.preempted.load(Ordering::Relaxed) != 0;
        if was_set {
            self.0.preempted.store(0, Ordering::Release);
        }
        was_set
    }
}

/// A record in guest memory, at its registered address.
#[derive(Debug)]
pub struct GuestRecord {
    record: NonNull<Record>,
    _vm: Arc<dyn HostVm>,
}

// SAFETY: guest memory belongs to the process, not to a thread, and `_vm` keeps it mapped.
unsafe impl Send for GuestRecord {}

// SAFETY: it dereferences to a record, whose fields are atomics.
unsafe impl Sync for GuestRecord {}

impl GuestRecord {
    /// Returns the record at `gpa` of `vm`'s memory; `None` if `gpa` is misaligned or outside RAM.
    pub fn at(vm: &Arc<dyn HostVm>, gpa: u64) -> Option<Self> {
        if !gpa.is_multiple_of(RECORD_SIZE as u64) {
            return None;
        }
        let page = vm.page_hva(gpa & !(PAGE - 1))?;
        let offset = usize::try_from(gpa % PAGE).ok()?;
        // SAFETY: the offset lies within the page, which is mapped.
        let record = unsafe { page.add(offset) };
        Some(Self { record: record.cast(), _vm: Arc::clone(vm) })
    }
}

impl Deref for GuestRecord {
    type Target = Record;

    fn deref(&self) -> &Record {
        // SAFETY: these are 64 aligned bytes of RAM, which `_vm` keeps mapped. Any bytes are a
        // valid record. Its fields are atomics, and guest, program and KVM write them by whole
        // words.
        unsafe { self.record.as_ref() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host_vm::tests::Memory;

    fn record(steal: u64, version: u32, preempted: u8) -> Record {
        Record(StealTime {
            steal: steal.into(),
            version: version.into(),
            flags: 0.into(),
            preempted: preempted.into(),
            padding: [const { AtomicU8::new(0xa5) }; 47],
        })
    }

    fn parts(record: &Record) -> (u64, u32, u8) {
        (
            record.0.steal.load(Ordering::Relaxed),
            record.0.version.load(Ordering::Relaxed),
            record.0.preempted.load(Ordering::Relaxed),
        )
    }

    #[test]
    fn update_adds_to_the_steal_in_the_record_and_clears_preempted() {
        let record = record(1000, 4, 1);
        record.update(0, 50);
        assert_eq!(parts(&record), (1050, 6, 0));
        assert_eq!(record.steal_ns(), 1050);
        assert!(record.0.padding.iter().all(|byte| byte.load(Ordering::Relaxed) == 0xa5));
        assert_eq!(record.0.flags.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn version_left_odd_by_the_guest_ends_even() {
        let record = record(0, 7, 0);
        record.update(0, 0);
        assert_eq!(parts(&record), (0, 10, 0));
    }

    /// psutil issue 1210: steal stuck at 100 % after months. No value of version or steal ends
    /// publication.
    #[test]
    fn version_and_steal_wrap_around() {
        let record = record(u64::MAX, u32::MAX - 1, 0);
        record.update(0, 2);
        assert_eq!(parts(&record), (1, 0, 0));
    }

    #[test]
    fn steal_is_raised_to_the_least_value_and_never_lowered() {
        let record = record(1000, 4, 1);
        record.update(5000, 7);
        assert_eq!(parts(&record), (5007, 6, 0));
        record.update(100, 1);
        assert_eq!(parts(&record), (5008, 8, 0));
    }

    #[test]
    fn record_in_guest_memory_is_found_where_it_fits() {
        let vm: Arc<dyn HostVm> = Memory::mib(1);
        let record = GuestRecord::at(&vm, 0xf_ffc0).expect("the last 64 bytes");
        record.update(0, 9);
        assert_eq!(GuestRecord::at(&vm, 0xf_ffc0).unwrap().steal_ns(), 9);
        for gpa in [0x10_0000, 0xf_ffc8, !0x3f] {
            assert!(GuestRecord::at(&vm, gpa).is_none(), "{gpa:#x}");
        }
    }

    #[test]
    fn clearing_preempted_touches_no_other_field() {
        let record = record(5, 8, 1);
        assert!(record.clear_preempted());
        assert!(!record.clear_preempted());
        assert_eq!(parts(&record), (5, 8, 0));
    }
}
