//! The overlay: pages that the BPF program can write, mapped over guest pages that hold records.
//!
//! A BPF program cannot write guest memory. It can write the elements of its own array map, and the
//! monitor can map such an element anywhere. So the guest page that holds a record is copied into
//! an element, and the element is mapped in its place. KVM follows (MMU notifier), and the guest
//! reads the same bytes at the same address.
//!
//! A guest write between copy and mapping would be lost: of a thousand remaps beside running vCPUs,
//! half lost writes. So all vCPUs are stopped, which [`AllStopped`] proves.
//!
//! Several records may share a page. The element stays mapped after its last record is withdrawn:
//! it costs nothing, and a guest that registers again finds it ready. Only when elements run short
//! is plain memory put back.

#![expect(unsafe_code, reason = "replaces pages of guest memory by pages of a BPF map, and back")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use crate::bpf::{Program, RecordAddr};
use crate::error::StealTimeError;
use crate::host_vm::{AllStopped, HostVm, PAGE, PAGE_SIZE};
use crate::publisher::record::Record;
use host::sync::lock;

/// The guest pages of one VM that are replaced by elements of the page map.
#[derive(Debug)]
pub struct Overlay {
    vm: Arc<dyn HostVm>,
    program: Arc<Program>,
    elements: Mutex<Vec<Element>>,
}

/// One element of the page map.
#[derive(Clone, Debug, Default)]
struct Element {
    /// The guest page that it replaces (GPA); `None` if it replaces none.
    page_gpa: Option<u64>,
    /// Number of records in use on it.
    records: usize,
}

impl Overlay {
    /// Creates the overlay of `vm`, in which no page is replaced yet.
    pub fn new(vm: Arc<dyn HostVm>, program: Arc<Program>) -> Self {
        let elements = Mutex::new(vec![Element::default(); program.pages().count()]);
        Self { vm, program, elements }
    }

    /// Returns the address of the record at `gpa` (64-byte aligned), and counts it as in use.
    ///
    /// Replaces its page first, if that was not done before: this stops all vCPUs. `None` outside
    /// RAM. The caller is a vCPU thread outside the guest.
    ///
    /// # Errors
    /// [`StealTimeError::Overlay`] if the host refuses the mapping; guest memory is unchanged.
    pub fn take(&self, gpa: u64) -> Result<Option<RecordAddr>, StealTimeError> {
        let page_gpa = gpa & !(PAGE - 1);
        let offset = usize::try_from(gpa - page_gpa).unwrap_or(0);
        let Some(page) = self.vm.page_hva(page_gpa) else { return Ok(None) };
        let element = match self.find_and_count(page_gpa) {
            Some(element) => element,
            None => self.stop_all(page_gpa, |stopped| self.replace(page_gpa, page, stopped))?,
        };
        Ok(Some(RecordAddr::new(element, offset)))
    }

    /// Marks the record at `addr` as no longer in use.
    pub fn give_back(&self, addr: RecordAddr) {
        if let Some(element) = lock(&self.elements).get_mut(addr.page()) {
            element.records = element.records.saturating_sub(1);
        }
    }

    /// Returns the record at `addr`.
    pub fn record(&self, addr: RecordAddr) -> Option<&Record> {
        Record::in_page(self.program.pages().page(addr.page())?, addr.offset())
    }

    /// Returns the guest pages that are replaced (GPA). KVM's dirty log misses what the program
    /// writes there.
    pub fn pages(&self) -> Vec<u64> {
        lock(&self.elements).iter().filter_map(|element| element.page_gpa).collect()
    }

    /// Calls `act` once, while all other vCPUs are stopped.
    fn stop_all<R>(
        &self,
        page_gpa: u64,
        act: impl Fn(&AllStopped) -> Result<R, StealTimeError>,
    ) -> Result<R, StealTimeError> {
        let mut result = None;
        self.vm.stop_all(&mut |stopped| result = Some(act(stopped)));
        // The monitor's `stop_all` may have failed to call it
        result.unwrap_or_else(|| {
            Err(StealTimeError::Overlay { page_gpa, source: io::ErrorKind::Interrupted.into() })
        })
    }

    fn find_and_count(&self, page_gpa: u64) -> Option<usize> {
        let mut elements = lock(&self.elements);
        let (index, element) = elements.iter_mut().enumerate().find(|(_, e)| e.page_gpa == Some(page_gpa))?;
        element.records += 1;
        Some(index)
    }

    /// Maps an element over the guest page at `page_gpa`. Returns its index.
    fn replace(
        &self,
        page_gpa: u64,
        page: NonNull<u8>,
        stopped: &AllStopped,
    ) -> Result<usize, StealTimeError> {
        // Another vCPU may have replaced the same page meanwhile
        if let Some(element) = self.find_and_count(page_gpa) {
            return Ok(element);
        }
        let mut elements = lock(&self.elements);
        let failed = |source| StealTimeError::Overlay { page_gpa, source };
        // One is always free: a vCPU has at most one record, and the map has an element for each
        // vCPU
        let index = elements
            .iter()
            .position(|element| element.page_gpa.is_none())
            .or_else(|| elements.iter().position(|element| element.records == 0))
            .ok_or_else(|| failed(io::ErrorKind::StorageFull.into()))?;
        if let Some(old) = elements[index].page_gpa.take() {
            self.restore(index, old, stopped).map_err(failed)?;
        }
        let element = self.element(index).ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        copy_page(page, element, stopped);
        self.map_element(index, page).map_err(failed)?;
        elements[index] = Element { page_gpa: Some(page_gpa), records: 1 };
        Ok(index)
    }

    /// Maps plain memory at `page_gpa` again, with the contents of element `index`.
    fn restore(&self, index: usize, page_gpa: u64, stopped: &AllStopped) -> io::Result<()> {
        let (Some(page), Some(element)) = (self.vm.page_hva(page_gpa), self.element(index)) else {
            return Ok(());
        };
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
        // SAFETY: `page` is a whole mapped page that holds guest memory and nothing else, as
        // `HostVm` promises. Every other vCPU is stopped, so no access falls into the time in which
        // it is empty.
        let mapped = unsafe { libc::mmap(page.as_ptr().cast(), PAGE_SIZE, protection, flags, -1, 0) };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        copy_page(element, page, stopped);
        Ok(())
    }

    /// Returns this process' own mapping of element `index`.
    fn element(&self, index: usize) -> Option<NonNull<u8>> {
        NonNull::new(self.program.pages().page(index)?.as_ptr().cast_mut().cast())
    }

    /// Maps element `index` over `page`.
    fn map_element(&self, index: usize, page: NonNull<u8>) -> io::Result<()> {
        let fd = self.program.pages().as_fd().as_raw_fd();
        let offset = i64::try_from(index * PAGE_SIZE).map_err(io::Error::other)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        // SAFETY: `page` is a whole mapped page that holds guest memory and nothing else, as
        // `HostVm` promises. Its bytes were copied, and every other vCPU is stopped since, so no
        // write is lost.
        let mapped = unsafe { libc::mmap(page.as_ptr().cast(), PAGE_SIZE, protection, flags, fd, offset) };
        if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// Copies one page. Neither is written meanwhile: the vCPUs are stopped, and no record on them is
/// published.
fn copy_page(from: NonNull<u8>, to: NonNull<u8>, _stopped: &AllStopped) {
    // SAFETY: both are whole mapped pages that do not overlap: one of guest memory, one of the page
    // map.
    unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.as_ptr(), PAGE_SIZE) };
}
