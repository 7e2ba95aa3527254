//! Guest pages that the host writes and KVM's dirty log misses.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use crate::host_vm::{HostVm, PAGE};
use host::sync::lock;

/// Number of pages that are told apart: four for each vCPU of the largest guest.
///
/// A guest may write any address to the MSR, as often as it likes. It must not make the monitor
/// grow, so from the next page on all pages count as unlogged.
const MAX_PAGES: usize = 1024;

/// The guest pages that KVM's dirty log misses: a bounded set, and then all pages.
#[derive(Debug)]
pub struct UnloggedPages {
    vm: Arc<dyn HostVm>,
    /// `None`: all pages.
    pages: Mutex<Option<BTreeSet<u64>>>,
}

impl UnloggedPages {
    /// Creates the empty set of pages of `vm`.
    pub fn of(vm: Arc<dyn HostVm>) -> Self {
        Self { vm, pages: Mutex::new(Some(BTreeSet::new())) }
    }

    /// Adds the page of `gpa`. A page outside RAM is never written, so it is not added.
    pub fn note(&self, gpa: u64) {
        let page = gpa & !(PAGE - 1);
        if self.vm.page_hva(page).is_none() {
            return;
        }
        let mut pages = lock(&self.pages);
        if let Some(set) = &mut *pages {
            set.insert(page);
            if set.len() > MAX_PAGES {
                *pages = None;
            }
        }
    }

    /// Returns the addresses of the pages (GPA), in ascending order; `None` for all pages.
    pub fn all(&self) -> Option<Vec<u64>> {
        lock(&self.pages).as_ref().map(|pages| pages.iter().copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host_vm::tests::Memory;

    #[test]
    fn million_addresses_outside_ram_are_not_kept() {
        let pages = UnloggedPages::of(Memory::mib(1));
        (0..1_000_000_u64).for_each(|page| pages.note((1 << 32) + page * PAGE));
        pages.note(u64::MAX);
        assert_eq!(pages.all(), Some(Vec::new()));
    }

    #[test]
    fn page_is_kept_once_whatever_the_offset() {
        let pages = UnloggedPages::of(Memory::mib(1));
        (0..1_000_000_u64).for_each(|record| pages.note(0x3000 + record % 64 * 64));
        pages.note(0x1fc0);
        assert_eq!(pages.all(), Some(vec![0x1000, 0x3000]));
    }

    #[test]
    fn more_pages_than_are_told_apart_become_all_pages_and_free_the_set() {
        let pages = UnloggedPages::of(Memory::mib(8));
        (0..MAX_PAGES as u64).for_each(|page| pages.note(page * PAGE));
        assert_eq!(pages.all().map(|pages| pages.len()), Some(MAX_PAGES));
        pages.note(MAX_PAGES as u64 * PAGE);
        assert_eq!(pages.all(), None);
        assert!(lock(&pages.pages).is_none());
    }
}
