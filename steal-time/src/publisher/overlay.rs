//! The page overlay: guest pages that hold records, laid over by pages that the BPF program can write.
//!
//! A BPF program cannot write guest memory; it can write the elements of its own array map, and the monitor can map
//! such an element wherever it likes. So the guest page that holds a record is copied into an element, and the
//! element is mapped in its place. KVM follows (MMU notifier); the guest sees the same bytes at the same address.
//!
//! Between copy and mapping a guest write to the page would be lost. Measured on running vCPUs: half of a thousand
//! remaps lost writes. Hence all vCPUs are stopped for it, which [`AllStopped`] proves.
//!
//! Several records may share a page. A page stays laid over when its last record goes: that costs nothing, and a
//! guest that registers again finds it ready. Only when elements run short is such a page given back.

#![expect(unsafe_code, reason = "replaces pages of guest memory by pages of a BPF map, and back")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::bpf::{Program, RecordAddr};
use crate::host_vm::{AllStopped, HostVm, PAGE, PAGE_SIZE};
use crate::publisher::record::Record;

/// The host would not map a page.
#[derive(Debug, thiserror::Error)]
#[error("Cannot map a record page over guest page {gpa:#x}")]
pub struct OverlayError {
    gpa: u64,
    source: io::Error,
}

/// All pages of one VM that are laid over.
#[derive(Debug)]
pub struct Overlay {
    vm: Arc<dyn HostVm>,
    program: Arc<Program>,
    elements: Mutex<Vec<Element>>,
}

/// One element of the page map.
#[derive(Clone, Debug, Default)]
struct Element {
    /// The guest page it is laid over; `None` while it is laid over none.
    page_gpa: Option<u64>,
    /// Records in use on it.
    records: usize,
}

impl Overlay {
    /// No page of `vm` is laid over yet.
    pub fn new(vm: Arc<dyn HostVm>, program: Arc<Program>) -> Self {
        let elements = Mutex::new(vec![Element::default(); program.pages().count()]);
        Self { vm, program, elements }
    }

    /// Finds the site of the record at `gpa` (64-byte aligned), laying its page over if it is not yet.
    ///
    /// `None` when it is not in RAM. The caller is a vCPU thread outside the guest; it may have to stop the others.
    ///
    /// # Errors
    /// [`OverlayError`] when the host refuses the mapping; guest memory is as it was.
    pub fn take(&self, gpa: u64) -> Result<Option<RecordAddr>, OverlayError> {
        let page_gpa = gpa & !(PAGE - 1);
        let offset = usize::try_from(gpa - page_gpa).unwrap_or(0);
        let Some(page) = self.vm.page_hva(page_gpa) else { return Ok(None) };
        let element = match self.find_and_count(page_gpa) {
            Some(element) => element,
            None => self.stopped(page_gpa, |stopped| self.lay_over(page_gpa, page, stopped))?,
        };
        Ok(Some(RecordAddr::new(element, offset)))
    }

    /// The record at `site` is not used any more.
    pub fn give_back(&self, site: RecordAddr) {
        if let Some(element) = self.lock().get_mut(site.page()) {
            element.records = element.records.saturating_sub(1);
        }
    }

    /// The record at `site`.
    pub fn record(&self, site: RecordAddr) -> Option<&Record> {
        Record::in_page(self.program.pages().page(site.page())?, site.offset())
    }

    /// The guest pages that are laid over (GPA): what the program writes there no dirty log of KVM's tells of.
    pub fn pages(&self) -> Vec<u64> {
        self.lock().iter().filter_map(|element| element.page_gpa).collect()
    }

    /// Calls `act` once, while all other vCPUs are stopped.
    fn stopped<R>(
        &self,
        gpa: u64,
        act: impl Fn(&AllStopped) -> Result<R, OverlayError>,
    ) -> Result<R, OverlayError> {
        let mut result = None;
        self.vm.stop_all(&mut |stopped| result = Some(act(stopped)));
        // A monitor whose `stop_all` does not call what it is given.
        result.unwrap_or_else(|| Err(OverlayError { gpa, source: io::ErrorKind::Interrupted.into() }))
    }

    fn find_and_count(&self, page_gpa: u64) -> Option<usize> {
        let mut elements = self.lock();
        let (index, element) = elements.iter_mut().enumerate().find(|(_, e)| e.page_gpa == Some(page_gpa))?;
        element.records += 1;
        Some(index)
    }

    fn lay_over(
        &self,
        page_gpa: u64,
        page: NonNull<u8>,
        stopped: &AllStopped,
    ) -> Result<usize, OverlayError> {
        // Another vCPU may have been faster with the same page.
        if let Some(element) = self.find_and_count(page_gpa) {
            return Ok(element);
        }
        let mut elements = self.lock();
        let failed = |source| OverlayError { gpa: page_gpa, source };
        // There is always one: each vCPU has at most one record, and the map has an element for each vCPU.
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

    /// Puts plain memory back at `page_gpa`, with what element `index` holds.
    fn restore(&self, index: usize, page_gpa: u64, stopped: &AllStopped) -> io::Result<()> {
        let (Some(page), Some(element)) = (self.vm.page_hva(page_gpa), self.element(index)) else {
            return Ok(());
        };
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
        // SAFETY: `page` is a whole page of the region that `ram` keeps mapped, and nothing but guest memory lies
        // there; every other vCPU is stopped, so nobody uses it while it is empty.
        let mapped = unsafe { libc::mmap(page.as_ptr().cast(), PAGE_SIZE, protection, flags, -1, 0) };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        copy_page(element, page, stopped);
        Ok(())
    }

    /// The loader's own mapping of element `index`.
    fn element(&self, index: usize) -> Option<NonNull<u8>> {
        NonNull::new(self.program.pages().page(index)?.as_ptr().cast_mut().cast())
    }

    fn map_element(&self, index: usize, page: NonNull<u8>) -> io::Result<()> {
        let fd = self.program.pages().as_fd().as_raw_fd();
        let offset = i64::try_from(index * PAGE_SIZE).map_err(io::Error::other)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        // SAFETY: `page` is a whole page of the region that `ram` keeps mapped, and nothing but guest memory lies
        // there; its bytes have just been copied, and every other vCPU is stopped, so no write falls in between.
        let mapped = unsafe { libc::mmap(page.as_ptr().cast(), PAGE_SIZE, protection, flags, fd, offset) };
        if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Element>> {
        self.elements.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Copies one page. Nobody writes either: the vCPUs are stopped, and no record on them is published.
fn copy_page(from: NonNull<u8>, to: NonNull<u8>, _stopped: &AllStopped) {
    // SAFETY: both are whole mapped pages that do not overlap, one of guest memory and one of the record map.
    unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.as_ptr(), PAGE_SIZE) };
}
