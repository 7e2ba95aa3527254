//! The guest as the real publisher sees it under fault injection.

#![expect(unsafe_code, reason = "vouches for the memory of the shadow records")]

use std::ffi::c_int;
use std::ptr::NonNull;
use std::sync::Arc;

use steal_time::host_vm::{AllStopped, HostVm};
use vmm::memory::Ram;

/// The guest as the real publisher sees it: the guest's vCPUs, with shadow memory in place of its
/// RAM.
#[derive(Debug)]
pub(super) struct ShadowVm {
    ram: Ram,
    vm: Arc<dyn HostVm>,
}

impl ShadowVm {
    pub(super) fn new(ram: Ram, vm: Arc<dyn HostVm>) -> Self {
        Self { ram, vm }
    }
}

// SAFETY: `ram` keeps its pages mapped as long as this object exists, and they hold nothing but
// shadow records. `stop_all` is the guest's own, which keeps its promise.
unsafe impl HostVm for ShadowVm {
    fn page_hva(&self, page_gpa: u64) -> Option<NonNull<u8>> {
        self.ram.page_hva(page_gpa)
    }

    fn stop_all(&self, act: &mut dyn FnMut(&AllStopped)) {
        self.vm.stop_all(act);
    }

    fn kick_signal(&self) -> Option<c_int> {
        self.vm.kick_signal()
    }
}
