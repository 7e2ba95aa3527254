//! Guest pages that the host writes and KVM's dirty log misses.

use std::collections::BTreeSet;
use std::sync::Mutex;

use crate::host_vm::PAGE;
use host::sync::lock;

/// A set of guest pages that KVM's dirty log misses.
#[derive(Debug, Default)]
pub struct UnloggedPages(Mutex<BTreeSet<u64>>);

impl UnloggedPages {
    /// Adds the page of `gpa`.
    pub fn note(&self, gpa: u64) {
        lock(&self.0).insert(gpa & !(PAGE - 1));
    }

    /// Returns the addresses of all pages (GPA), in ascending order.
    pub fn all(&self) -> Vec<u64> {
        lock(&self.0).iter().copied().collect()
    }
}
