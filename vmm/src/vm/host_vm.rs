//! The guest as the steal-time library sees it: pages of RAM, and vCPUs that can be stopped.

#![expect(unsafe_code, reason = "guarantees the addresses of RAM, and that vCPUs are stopped")]

use std::ffi::c_int;
use std::ptr::NonNull;
use std::sync::Arc;

use host::kick;
use steal_time::host_vm::{AllStopped, HostVm};

use crate::memory::Ram;
use crate::vcpu::control::VcpuControl;

/// RAM of a guest and the control of its vCPU threads.
#[derive(Debug)]
pub struct GuestVm {
    ram: Ram,
    control: Arc<VcpuControl>,
}

impl GuestVm {
    /// Creates the view of the guest that has `ram`, and whose vCPU threads `control` controls.
    pub fn new(ram: Ram, control: Arc<VcpuControl>) -> Self {
        Self { ram, control }
    }
}

// SAFETY: `ram` keeps its pages mapped at the same addresses while this object exists, and they
// hold guest memory only. `VcpuControl::stop_all` creates its proof only while every other vCPU
// thread is outside the guest, and keeps the threads there until `act` returns.
unsafe impl HostVm for GuestVm {
    fn page_hva(&self, page_gpa: u64) -> Option<NonNull<u8>> {
        self.ram.page_hva(page_gpa)
    }

    fn stop_all(&self, act: &mut dyn FnMut(&AllStopped)) {
        self.control.stop_all(act);
    }

    fn kick_signal(&self) -> Option<c_int> {
        Some(kick::signal())
    }
}
