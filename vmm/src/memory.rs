//! Guest memory: RAM, its memslots, and checked access to it.
//!
//! No guest address is trusted. Everything that is loaded goes through [`Ram::write`], which checks it; an address of the host
//! is given out by [`Ram::hva`] only if the whole range is RAM.

#![expect(unsafe_code, reason = "memslots hand host memory to KVM")]

use std::io;
use std::ops::Range;
use std::ptr::NonNull;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use protocol::payload::machine::MMIO_GAP;
use vm_memory::{
    Address, ByteValued, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    MmapRegion, ReadVolatile,
};

pub use steal_time::host_vm::{PAGE, PAGE_SIZE};

/// What fits under 46 bits of physical address, as the smallest of the processors we know has them.
const MOST_MIB: u64 = 1 << (46 - 20 - 1);

/// Guest memory could not be made, or an address lies outside it.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// No guest has so much, or so little.
    #[error("A guest has 1 to {MOST_MIB} MiB of memory, and {0} were asked for (see --memory)")]
    Size(u64),
    /// The host would not give the memory.
    #[error("Cannot map {mib} MiB of guest memory (try a smaller --memory)")]
    Map {
        /// What was asked for.
        mib: u64,
        /// What the host said.
        source: vm_memory::mmap::FromRangesError,
    },
    /// KVM would not take it.
    #[error("KVM refuses guest memory at {gpa:#x} (try a smaller --memory)")]
    Memslot {
        /// Where the slot begins.
        gpa: u64,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
    /// Something was to be written where there is no RAM.
    #[error("Guest memory ends before {range:#x?} (try a larger --memory)")]
    Outside {
        /// The addresses in question.
        range: Range<u64>,
    },
    /// What was to be written could not be read.
    #[error("Cannot read what was to go to guest memory")]
    Source(#[source] io::Error),
}

/// Guest RAM: from 0, with a gap below 4 GiB.
#[derive(Clone, Debug)]
pub struct Ram {
    memory: GuestMemoryMmap,
    mib: u64,
}

impl Ram {
    /// Maps `mib` MiB, all zero, none of it touched.
    ///
    /// # Errors
    /// [`MemoryError::Map`] when the host does not give so much, [`MemoryError::Size`] when no host would.
    pub fn new(mib: u64) -> Result<Self, MemoryError> {
        if !(1..=MOST_MIB).contains(&mib) {
            return Err(MemoryError::Size(mib));
        }
        let ranges: Vec<_> = ranges(mib)
            .filter_map(|range| {
                Some((GuestAddress(range.start), usize::try_from(range.end - range.start).ok()?))
            })
            .collect();
        let memory =
            GuestMemoryMmap::from_ranges(&ranges).map_err(|source| MemoryError::Map { mib, source })?;
        Ok(Self { memory, mib })
    }

    /// Returns the guest memory of vm-memory.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Size in MiB.
    pub fn mib(&self) -> u64 {
        self.mib
    }

    /// The RAM's address ranges, ascending.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> + Clone + use<> {
        ranges(self.mib)
    }

    /// Whether all of `range` is RAM, without a gap in it.
    pub fn holds(&self, range: &Range<u64>) -> bool {
        self.ranges().any(|ram| ram.start <= range.start && range.start <= range.end && range.end <= ram.end)
    }

    /// Gives the RAM to a virtual machine, a memslot for each range.
    ///
    /// # Errors
    /// [`MemoryError::Memslot`] with KVM's reason.
    pub fn give_to(&self, vm: &VmFd) -> Result<(), MemoryError> {
        for (slot, region) in (0..).zip(self.memory.iter()) {
            let gpa = region.start_addr().raw_value();
            let memslot = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: gpa,
                memory_size: region.len(),
                userspace_addr: MmapRegion::as_ptr(region) as u64,
            };
            // SAFETY: the region is mapped for `memory_size` bytes, and stays so for the life of the VM: whoever
            // holds the VM holds a clone of this `Ram` (see `Machine`).
            unsafe { vm.set_user_memory_region(memslot) }
                .map_err(|source| MemoryError::Memslot { gpa, source })?;
        }
        Ok(())
    }

    /// Copies `bytes` to `gpa`.
    ///
    /// # Errors
    /// [`MemoryError::Outside`] when they do not fit.
    pub fn write(&self, gpa: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        self.memory
            .write_slice(bytes, GuestAddress(gpa))
            .map_err(|_| MemoryError::Outside { range: gpa..gpa.saturating_add(bytes.len() as u64) })
    }

    /// Reads `length` bytes from where `source` stands to `gpa`, without a buffer in between.
    ///
    /// # Errors
    /// [`MemoryError::Outside`] when they do not fit, [`MemoryError::Source`] when there are not so many.
    pub fn read_from(&self, gpa: u64, mut source: impl ReadVolatile, length: u64) -> Result<(), MemoryError> {
        let range = gpa..gpa.saturating_add(length);
        match usize::try_from(length) {
            Ok(length) if self.holds(&range) => {
                let read = self.memory.read_exact_volatile_from(GuestAddress(gpa), &mut source, length);
                read.map_err(|error| MemoryError::Source(io::Error::other(error)))
            }
            _ => Err(MemoryError::Outside { range }),
        }
    }

    /// Copies `object` to `gpa`.
    ///
    /// # Errors
    /// [`MemoryError::Outside`] when it does not fit.
    pub fn write_object(&self, gpa: u64, object: &impl ByteValued) -> Result<(), MemoryError> {
        self.write(gpa, object.as_slice())
    }

    /// The host address of the page at `gpa`, which is page aligned; `None` outside RAM.
    pub fn page_hva(&self, gpa: u64) -> Option<NonNull<u8>> {
        if !gpa.is_multiple_of(PAGE) || !self.holds(&(gpa..gpa.checked_add(PAGE)?)) {
            return None;
        }
        NonNull::new(self.memory.get_host_address(GuestAddress(gpa)).ok()?)
    }

    /// The host address of `range` of `size` bytes at `gpa`, aligned to `align`; `None` unless all of it is RAM.
    pub fn hva(&self, gpa: u64, size: usize, align: usize) -> Option<NonNull<u8>> {
        let end = gpa.checked_add(size as u64)?;
        if !gpa.is_multiple_of(align as u64) || !self.holds(&(gpa..end)) {
            return None;
        }
        NonNull::new(self.memory.get_host_address(GuestAddress(gpa)).ok()?)
    }
}

fn ranges(mib: u64) -> impl Iterator<Item = Range<u64>> + Clone {
    let size = mib << 20;
    let low = 0..size.min(MMIO_GAP.start);
    let high = MMIO_GAP.end..MMIO_GAP.end + size.saturating_sub(MMIO_GAP.start);
    [low, high].into_iter().filter(|range| !range.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_larger_than_the_gap_goes_on_above_4_gib() {
        assert_eq!(ranges(128).collect::<Vec<_>>(), [0..128 << 20]);
        assert_eq!(ranges(3072).collect::<Vec<_>>(), [0..MMIO_GAP.start]);
        assert_eq!(ranges(4096).collect::<Vec<_>>(), [0..MMIO_GAP.start, 0x1_0000_0000..0x1_4000_0000]);
    }

    #[test]
    fn holds_refuses_what_reaches_past_the_end() {
        let ram = Ram::new(1).unwrap();
        assert!(ram.holds(&(0..0x10_0000)));
        assert!(!ram.holds(&(0..0x10_0001)));
        assert!(!ram.holds(&(u64::MAX..u64::MAX)));
    }

    #[test]
    fn page_hva_refuses_misaligned_and_foreign_pages() {
        let ram = Ram::new(1).unwrap();
        assert!(ram.page_hva(0xf_f000).is_some());
        assert!(ram.page_hva(0xf_f800).is_none());
        assert!(ram.page_hva(0x10_0000).is_none());
        assert!(ram.page_hva(!(PAGE - 1)).is_none());
    }

    #[test]
    fn hva_refuses_what_is_misaligned_or_not_all_ram() {
        let ram = Ram::new(8).unwrap();
        assert!(ram.hva(0x10_0000, 0x2000, 4096).is_some());
        assert!(ram.hva(0x10_0800, 0x2000, 4096).is_none());
        assert!(ram.hva(0x7f_f000, 0x2000, 4096).is_none());
        assert!(ram.hva(u64::MAX - 4095, 0x2000, 4096).is_none());
    }
}
