//! What the library needs from a monitor: guest pages, and a moment in which all vCPUs are stopped.
//!
//! A monitor implements [`HostVm`] once for its virtual machine. The library touches guest memory,
//! vCPU threads and signals in no other way.

#![expect(unsafe_code, reason = "the monitor vouches for addresses, and for vCPUs that are stopped")]

use std::ffi::c_int;
use std::fmt;
use std::ptr::NonNull;

use protocol::MAX_VCPUS;

/// Size of a guest page (bytes).
pub const PAGE_SIZE: usize = 4096;

/// Size of a guest page, for address arithmetic (bytes).
pub const PAGE: u64 = PAGE_SIZE as u64;

/// A virtual machine, as its monitor lends it to this library.
///
/// # Safety
/// An address that [`page_hva`](Self::page_hva) returns must stay mapped, readable and writable,
/// for as long as the implementor exists. The whole page must hold guest memory and nothing else:
/// the library replaces the mapping. [`stop_all`](Self::stop_all) must keep its promise.
///
/// A balloon leaves out the pages that [`Publisher::unlogged_pages`] names. The kernel does not
/// fault in a page of a BPF map again after `MADV_DONTNEED`: the next access is a `SIGBUS`.
///
/// [`Publisher::unlogged_pages`]: crate::publisher::Publisher::unlogged_pages
pub unsafe trait HostVm: fmt::Debug + Send + Sync {
    /// Returns the host address of the guest page at `page_gpa`, a multiple of [`PAGE_SIZE`].
    /// `None` outside RAM.
    fn page_hva(&self, page_gpa: u64) -> Option<NonNull<u8>>;

    /// Stops every vCPU but the caller's, calls `act` once, and lets the vCPUs continue.
    ///
    /// The caller is a vCPU thread outside `KVM_RUN`, or no vCPU thread at all. Calls may come from
    /// several threads at once; one `act` runs at a time. The usual way is a lock that vCPU threads
    /// hold for reading inside `KVM_RUN`, and a signal that makes them leave it.
    fn stop_all(&self, act: &mut dyn FnMut(&AllStopped));

    /// Returns the signal that makes a vCPU thread leave `KVM_RUN`. Every vCPU thread blocks it
    /// outside `KVM_RUN` (`KVM_SET_SIGNAL_MASK`).
    ///
    /// The publishers `bpf-classic`, `perf` and `monitor` need one; `bpf` does not.
    fn kick_signal(&self) -> Option<c_int> {
        None
    }

    /// Returns the largest number of vCPUs that the machine may get. The BPF publishers allocate a
    /// page for each.
    fn max_vcpus(&self) -> usize {
        MAX_VCPUS
    }
}

/// Proof that no vCPU but the caller's is inside the guest, for as long as it is borrowed.
#[derive(Debug)]
pub struct AllStopped(());

impl AllStopped {
    /// Creates the proof.
    ///
    /// # Safety
    /// No vCPU thread but the caller's is inside `KVM_RUN`, and none enters it while the proof
    /// exists.
    pub unsafe fn new() -> Self {
        Self(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

    use super::*;

    /// Guest memory from address 0, without vCPUs.
    #[derive(Debug)]
    pub(crate) struct Memory(GuestMemoryMmap);

    impl Memory {
        pub(crate) fn mib(mib: usize) -> std::sync::Arc<Self> {
            let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), mib << 20)]);
            std::sync::Arc::new(Self(memory.unwrap()))
        }
    }

    // SAFETY: the memory is mapped as long as the object exists, and there is no vCPU.
    unsafe impl HostVm for Memory {
        fn page_hva(&self, page_gpa: u64) -> Option<NonNull<u8>> {
            NonNull::new(self.0.get_host_address(GuestAddress(page_gpa)).ok()?)
        }

        fn stop_all(&self, act: &mut dyn FnMut(&AllStopped)) {
            // SAFETY: there is no vCPU.
            act(&unsafe { AllStopped::new() });
        }
    }
}
