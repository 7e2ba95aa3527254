//! Guest pages that the monitor writes itself: KVM's dirty log does not tell of them.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use crate::host_vm::PAGE;

/// A set of guest pages.
#[derive(Debug, Default)]
pub struct UnloggedPages(Mutex<BTreeSet<u64>>);

impl UnloggedPages {
    /// The page of `gpa` is written from now on, or was.
    pub fn note(&self, gpa: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(gpa & !(PAGE - 1));
    }

    /// All of them (GPA).
    pub fn all(&self) -> Vec<u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }
}
