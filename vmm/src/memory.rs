//! Guest memory: RAM, its memslots, and checked access to it.
//!
//! Guest physical addresses (GPA) come from payloads and guests, and are not trusted. Writes check
//! them, and a host address (HVA) is returned only if the whole range is RAM.

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

use crate::error::VmmError;

pub use steal_time::host_vm::{PAGE, PAGE_SIZE};

/// Maximum size of guest memory (MiB): half of 46 bits, the smallest physical address space of the
/// processors that KVM supports in practice.
const MAX_MIB: u64 = 1 << (46 - 20 - 1);

/// Guest RAM: it begins at GPA 0 and has a gap below 4 GiB. Clones share the memory.
#[derive(Clone, Debug)]
pub struct Ram {
    memory: GuestMemoryMmap,
    mib: u64,
}

impl Ram {
    /// Maps `mib` MiB of zeroes. The host allocates pages when they are first touched.
    ///
    /// # Errors
    /// [`VmmError::Usage`] if no host has that much, [`VmmError::Host`] if this host refuses.
    pub fn new(mib: u64) -> Result<Self, VmmError> {
        if !(1..=MAX_MIB).contains(&mib) {
            return Err(VmmError::Usage(format!(
                "A guest has 1 to {MAX_MIB} MiB of memory, and {mib} were asked for (see --memory)"
            )));
        }
        let to_vm_memory = |range: Range<u64>| {
            Some((GuestAddress(range.start), usize::try_from(range.end - range.start).ok()?))
        };
        let ranges: Vec<_> = ranges(mib).filter_map(to_vm_memory).collect();
        let memory = GuestMemoryMmap::from_ranges(&ranges)
            .map_err(VmmError::cannot(format!("map {mib} MiB of guest memory (try a smaller --memory)")))?;
        Ok(Self { memory, mib })
    }

    /// Returns the guest memory of vm-memory.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Returns the size in MiB.
    pub fn mib(&self) -> u64 {
        self.mib
    }

    /// Returns the GPA ranges of the RAM, ascending.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> + Clone + use<> {
        ranges(self.mib)
    }

    /// Returns whether all of `range` is RAM, without a gap.
    pub fn holds(&self, range: &Range<u64>) -> bool {
        self.ranges().any(|ram| ram.start <= range.start && range.start <= range.end && range.end <= ram.end)
    }

    /// Adds the RAM to `vm`, with one memslot for each range.
    ///
    /// The owner of `vm` keeps a clone of this RAM until `vm` is closed.
    ///
    /// # Errors
    /// [`VmmError::Host`] if KVM refuses a memslot.
    pub fn add_memslots(&self, vm: &VmFd) -> Result<(), VmmError> {
        for (slot, region) in (0..).zip(self.memory.iter()) {
            let gpa = region.start_addr().raw_value();
            let memslot = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: gpa,
                memory_size: region.len(),
                userspace_addr: MmapRegion::as_ptr(region) as u64,
            };
            // SAFETY: `region` is mapped for `memory_size` bytes, and a clone of `self` keeps it
            // mapped. `Machine`, the only owner of a VM, holds such a clone, and closes the VM
            // first.
            let set = unsafe { vm.set_user_memory_region(memslot) };
            set.map_err(VmmError::cannot(format!(
                "add guest memory at {gpa:#x} to the virtual machine (try a smaller --memory)"
            )))?;
        }
        Ok(())
    }

    /// Copies `bytes` to `gpa`.
    ///
    /// # Errors
    /// [`VmmError::OutsideMemory`] if RAM does not hold them.
    pub fn write(&self, gpa: u64, bytes: &[u8]) -> Result<(), VmmError> {
        let range = gpa..gpa.saturating_add(bytes.len() as u64);
        self.memory.write_slice(bytes, GuestAddress(gpa)).map_err(|_| VmmError::OutsideMemory { range })
    }

    /// Copies `object` to `gpa`.
    ///
    /// # Errors
    /// [`VmmError::OutsideMemory`] if RAM does not hold it.
    pub fn write_object(&self, gpa: u64, object: &impl ByteValued) -> Result<(), VmmError> {
        self.write(gpa, object.as_slice())
    }

    /// Reads `length` bytes from the position of `source` to `gpa`, without a buffer in between.
    /// The inner result is that of reading.
    ///
    /// # Errors
    /// [`VmmError::OutsideMemory`] if RAM does not hold them.
    pub fn read_from(
        &self,
        gpa: u64,
        mut source: impl ReadVolatile,
        length: u64,
    ) -> Result<io::Result<()>, VmmError> {
        let range = gpa..gpa.saturating_add(length);
        match usize::try_from(length) {
            Ok(length) if self.holds(&range) => {
                let read = self.memory.read_exact_volatile_from(GuestAddress(gpa), &mut source, length);
                Ok(read.map_err(io::Error::other))
            }
            _ => Err(VmmError::OutsideMemory { range }),
        }
    }

    /// Returns the HVA of the page at `gpa`; `None` if `gpa` is misaligned or outside RAM.
    pub fn page_hva(&self, gpa: u64) -> Option<NonNull<u8>> {
        self.hva(gpa, PAGE_SIZE, PAGE_SIZE)
    }

    /// Returns the HVA of `size` bytes at `gpa`; `None` if `gpa` is not a multiple of `align`, or
    /// RAM does not hold all bytes.
    pub fn hva(&self, gpa: u64, size: usize, align: usize) -> Option<NonNull<u8>> {
        let end = gpa.checked_add(size as u64)?;
        if !gpa.is_multiple_of(align as u64) || !self.holds(&(gpa..end)) {
            return None;
        }
        NonNull::new(self.memory.get_host_address(GuestAddress(gpa)).ok()?)
    }
}

/// Returns the GPA ranges of `mib` MiB of RAM, ascending.
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
