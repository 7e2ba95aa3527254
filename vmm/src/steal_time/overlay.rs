//! The page overlay: guest pages that hold records, laid over by pages that the BPF program can write.
//!
//! A BPF program cannot write guest memory; it can write the elements of its own array map, and the monitor can map
//! such an element wherever it likes. So the guest page that holds a record is copied into an element, and the
//! element is mapped in its place. KVM follows (MMU notifier); the guest sees the same bytes at the same address.
//!
//! Between copy and mapping a guest write to the page would be lost. Measured on running vCPUs: half of a thousand
//! remaps lost writes. Hence all vCPUs are parked for it, which [`AllParked`] proves.
//!
//! Several records may share a page. A page stays laid over when its last record goes: that costs nothing, and a
//! guest that registers again finds it ready. Only when elements run short is such a page given back.

#![expect(unsafe_code, reason = "replaces pages of guest memory by pages of a BPF map, and back")]

use std::io;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::memory::{PAGE, Ram};
use crate::publisher::bpf::Program;
use crate::steal_time::record::Record;
use crate::vcpu::gate::{AllParked, Gate};

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
    ram: Ram,
    gate: Arc<Gate>,
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

/// The place of a record: an element of the page map, and an offset into it.
#[derive(Debug, PartialEq, Eq)]
pub struct Place {
    /// Index into the page map.
    pub element: usize,
    /// Bytes from the page's begin, a multiple of 64.
    pub offset: usize,
}

impl Overlay {
    /// No page is laid over yet. The vCPU threads are those of `gate`.
    pub fn new(ram: Ram, gate: Arc<Gate>, program: Arc<Program>) -> Self {
        let elements = Mutex::new(vec![Element::default(); program.pages().len()]);
        Self { ram, gate, program, elements }
    }

    /// Finds the place of the record at `gpa` (64-byte aligned), laying its page over if it is not yet.
    ///
    /// `None` when it is not in RAM. The caller is a vCPU thread outside the guest; it may have to stop the others.
    ///
    /// # Errors
    /// [`OverlayError`] when the host refuses the mapping; guest memory is as it was.
    pub fn take(&self, gpa: u64) -> Result<Option<Place>, OverlayError> {
        let page_gpa = gpa & !(PAGE - 1);
        let offset = usize::try_from(gpa - page_gpa).unwrap_or(0);
        let Some(page) = self.ram.page_hva(page_gpa) else { return Ok(None) };
        let element = match self.find_and_count(page_gpa) {
            Some(element) => element,
            None => self.gate.alone(|parked| self.lay_over(page_gpa, page, parked))?,
        };
        Ok(Some(Place { element, offset }))
    }

    /// The record at `place` is not used any more.
    pub fn give_back(&self, place: &Place) {
        if let Some(element) = self.lock().get_mut(place.element) {
            element.records = element.records.saturating_sub(1);
        }
    }

    /// The record at `place`.
    pub fn record(&self, place: &Place) -> &Record {
        self.program.pages().record(place.element, place.offset)
    }

    fn find_and_count(&self, page_gpa: u64) -> Option<usize> {
        let mut elements = self.lock();
        let (index, element) = elements.iter_mut().enumerate().find(|(_, e)| e.page_gpa == Some(page_gpa))?;
        element.records += 1;
        Some(index)
    }

    fn lay_over(&self, page_gpa: u64, page: NonNull<u8>, parked: &AllParked) -> Result<usize, OverlayError> {
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
            self.restore(index, old, parked).map_err(failed)?;
        }
        let element = self.program.pages().page(index);
        copy_page(page, element.cast(), parked);
        self.map_element(index, page).map_err(failed)?;
        elements[index] = Element { page_gpa: Some(page_gpa), records: 1 };
        Ok(index)
    }

    /// Puts plain memory back at `page_gpa`, with what element `index` holds.
    fn restore(&self, index: usize, page_gpa: u64, parked: &AllParked) -> io::Result<()> {
        let Some(page) = self.ram.page_hva(page_gpa) else { return Ok(()) };
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
        // SAFETY: `page` is a whole page of the region that `ram` keeps mapped, and nothing but guest memory lies
        // there; every other vCPU is parked, so nobody uses it while it is empty.
        let mapped = unsafe { libc::mmap(page.as_ptr().cast(), PAGE_BYTES, protection, flags, -1, 0) };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        copy_page(self.program.pages().page(index).cast(), page, parked);
        Ok(())
    }

    fn map_element(&self, index: usize, page: NonNull<u8>) -> io::Result<()> {
        use std::os::fd::AsRawFd;
        let fd = self.program.pages().as_fd().as_raw_fd();
        let offset = i64::try_from(index * PAGE_BYTES).map_err(io::Error::other)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        // SAFETY: `page` is a whole page of the region that `ram` keeps mapped, and nothing but guest memory lies
        // there; its bytes have just been copied, and every other vCPU is parked, so no write falls in between.
        let mapped = unsafe { libc::mmap(page.as_ptr().cast(), PAGE_BYTES, protection, flags, fd, offset) };
        if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Element>> {
        self.elements.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// [`PAGE`], as the host counts bytes.
const PAGE_BYTES: usize = 4096;

/// Copies one page. Nobody writes either: the vCPUs are parked, and no record on them is published.
fn copy_page(from: NonNull<u8>, to: NonNull<u8>, _parked: &AllParked) {
    // SAFETY: both are whole mapped pages that do not overlap, one of guest memory and one of the record map.
    unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.as_ptr(), PAGE_BYTES) };
}
