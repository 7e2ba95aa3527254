//! Guest pages that the monitor writes itself: KVM's dirty log does not tell of them.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use crate::memory::PAGE;

/// A set of guest pages.
#[derive(Debug, Default)]
pub(super) struct Pages(Mutex<BTreeSet<u64>>);

impl Pages {
    /// The page of `gpa` is written from now on, or was.
    pub(super) fn note(&self, gpa: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(gpa & !(PAGE - 1));
    }

    /// All of them (GPA).
    pub(super) fn all(&self) -> Vec<u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }
}
