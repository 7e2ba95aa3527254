//! The machine as the steal-time library sees it: pages of RAM, and vCPUs that can be stopped.

#![expect(unsafe_code, reason = "vouches for the addresses of RAM, and for vCPUs that are stopped")]

use std::ffi::c_int;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::memory::Ram;
use crate::vcpu::control::VcpuControl;
use host::kick;
use steal_time::host_vm::{AllStopped, HostVm};

/// RAM of a guest and the control of its vCPUs.
#[derive(Debug)]
pub struct GuestVm {
    ram: Ram,
    control: Arc<VcpuControl>,
}

impl GuestVm {
    /// The guest with `ram`, whose vCPU threads stop at `control`.
    pub fn new(ram: Ram, control: Arc<VcpuControl>) -> Self {
        Self { ram, control }
    }
}

// SAFETY: `ram` keeps its pages mapped at the same addresses as long as this object exists, and they hold guest memory
// alone. `VcpuControl::alone` returns from its wait only when every other vCPU thread is outside the guest, and keeps it there.
unsafe impl HostVm for GuestVm {
    fn page_hva(&self, page_gpa: u64) -> Option<NonNull<u8>> {
        self.ram.page_hva(page_gpa)
    }

    fn stop_all(&self, act: &mut dyn FnMut(&AllStopped)) {
        self.control.stop_all(|_| {
            // SAFETY: every other vCPU thread waits at the gate until this closure returns.
            act(&unsafe { AllStopped::new() });
        });
    }

    fn kick_signal(&self) -> Option<c_int> {
        Some(kick::signal())
    }
}
