//! The page map, as the monitor sees it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicU8;

use protocol::steal_time::StealTime;

use super::mapping::Mapping;
use super::slot::Site;
use crate::host_vm::PAGE_SIZE;

/// The page map: memory for guest pages that hold records, which the program can write.
///
/// As a file (`as_fd`), element `i` lies at offset `i * 4096`: map it over the guest's page, with all vCPUs paused.
#[derive(Debug)]
pub struct RecordPages {
    map: OwnedFd,
    pages: Mapping<[AtomicU8; PAGE_SIZE]>,
}

impl RecordPages {
    pub(super) fn map(map: OwnedFd, pages: usize) -> io::Result<Self> {
        let pages = Mapping::of_shared_file(map.as_fd(), pages)?;
        Ok(Self { map, pages })
    }

    /// How many elements there are.
    pub fn count(&self) -> usize {
        self.pages.len()
    }

    /// The bytes of element `page`, or `None` beyond the last.
    pub fn page(&self, page: usize) -> Option<&[AtomicU8; PAGE_SIZE]> {
        self.pages.get(page)
    }

    /// The `preempted` byte of the record at `site`, or `None` beyond the last element.
    pub fn preempted(&self, site: Site) -> Option<&AtomicU8> {
        self.page(site.page())?.get(site.offset() + std::mem::offset_of!(StealTime, preempted))
    }
}

impl AsFd for RecordPages {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}
