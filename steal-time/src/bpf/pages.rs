//! The page map, as mapped by the monitor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicU8;

use protocol::kvm::StealTime;

use super::mapping::Mapping;
use super::slot::RecordAddr;
use host::PAGE_SIZE;

/// The page map: memory that replaces guest pages which hold records, so that the program can write
/// them.
///
/// As a file (`as_fd`), element `i` lies at offset `i * 4096`. The monitor maps it over the guest's
/// page while all vCPUs are stopped.
#[derive(Debug)]
pub struct RecordPages {
    map: OwnedFd,
    pages: Mapping<[AtomicU8; PAGE_SIZE]>,
}

impl RecordPages {
    /// Maps the `pages` elements of `map`.
    pub(super) fn map(map: OwnedFd, pages: usize) -> io::Result<Self> {
        let pages = Mapping::of_shared_file(map.as_fd(), pages)?;
        Ok(Self { map, pages })
    }

    /// Returns the number of elements.
    pub fn count(&self) -> usize {
        self.pages.len()
    }

    /// Returns the bytes of element `page`, or `None` beyond the last element.
    pub fn page(&self, page: usize) -> Option<&[AtomicU8; PAGE_SIZE]> {
        self.pages.get(page)
    }

    /// Returns `preempted` of the record at `addr`, or `None` beyond the last element.
    pub fn preempted(&self, addr: RecordAddr) -> Option<&AtomicU8> {
        self.page(addr.page())?.get(addr.offset() + std::mem::offset_of!(StealTime, preempted))
    }
}

impl AsFd for RecordPages {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}
