//! Hands: what is done to a vCPU thread, and what has been, so that nothing is done twice.

use std::io;
use std::sync::Arc;

use crate::policy::{Cpu, Vcpu};
use host::cpus::Cpus;
use host::thread::{Class, set_class};
use vmm::vcpu::control::{CpuHandoff, VcpuHandle};

/// The vCPU threads of all guests.
#[derive(Debug)]
pub(super) struct VcpuThreads {
    threads: Vec<VcpuThread>,
    /// The host's numbers of the CPUs.
    cpus: Vec<usize>,
    /// Where threads run, one at a time, that leave for each other.
    places: Vec<Arc<CpuHandoff>>,
}

#[derive(Debug)]
struct VcpuThread {
    handle: Arc<VcpuHandle>,
    at: Option<Cpu>,
    class: Class,
}

impl VcpuThreads {
    pub(super) fn new(handles: Vec<Arc<VcpuHandle>>, cpus: Vec<usize>) -> Self {
        let thread = |handle| VcpuThread { handle, at: None, class: Class::Fair };
        let places = cpus.iter().map(|_| Arc::default()).collect();
        Self { threads: handles.into_iter().map(thread).collect(), cpus, places }
    }

    pub(super) fn count(&self) -> usize {
        self.threads.len()
    }

    pub(super) fn tid(&self, vcpu: Vcpu) -> libc::pid_t {
        self.threads.get(vcpu).map_or(0, |thread| thread.handle.kick_handle().tid())
    }

    /// Confines it to `cpu`. A thread that has ended needs no place.
    pub(super) fn place(&mut self, vcpu: Vcpu, cpu: Cpu) {
        let Some(thread) = self.threads.get_mut(vcpu).filter(|thread| thread.at != Some(cpu)) else { return };
        thread.at = Some(cpu);
        if let Some(number) = self.cpus.get(cpu) {
            let _ = Cpus::single(*number).pin_thread(thread.handle.kick_handle().tid());
        }
    }

    /// Changes its class, and says whether that was allowed.
    pub(super) fn set_class(&mut self, vcpu: Vcpu, class: Class) -> io::Result<()> {
        let Some(thread) = self.threads.get_mut(vcpu).filter(|thread| thread.class != class) else {
            return Ok(());
        };
        thread.class = class;
        set_class(thread.handle.kick_handle().tid(), class)
    }

    pub(super) fn class(&self, vcpu: Vcpu) -> Class {
        self.threads.get(vcpu).map_or(Class::Fair, |thread| thread.class)
    }

    pub(super) fn hold(&self, vcpu: Vcpu) {
        if let Some(thread) = self.threads.get(vcpu).filter(|thread| !thread.handle.is_descheduled()) {
            thread.handle.deschedule();
        }
    }

    pub(super) fn release(&self, vcpu: Vcpu) {
        if let Some(thread) = self.threads.get(vcpu).filter(|thread| thread.handle.is_descheduled()) {
            thread.handle.schedule();
        }
    }

    /// Releases `vcpu` on `cpu` when whoever has been running there has left.
    pub(super) fn take_over(&mut self, cpu: Cpu, vcpu: Vcpu) {
        let (Some(thread), Some(place)) = (self.threads.get(vcpu), self.places.get(cpu)) else { return };
        if thread.at != Some(cpu) {
            thread.handle.leave_cpu();
        }
        place.give(&thread.handle);
    }

    /// Nobody takes `cpu` over.
    pub(super) fn close(&self, cpu: Cpu) {
        if let Some(place) = self.places.get(cpu) {
            place.close();
        }
    }

    /// Gives all of them back to the host, as they were.
    pub(super) fn release_all(&mut self) {
        for vcpu in 0..self.threads.len() {
            self.give_back(vcpu);
        }
    }

    /// Gives one back to the host, as it was.
    pub(super) fn give_back(&mut self, vcpu: Vcpu) {
        let all = self.cpus.iter().copied().collect::<Cpus>();
        // Whoever has ended refuses, and it does not matter.
        let _ = self.set_class(vcpu, Class::Fair);
        self.release(vcpu);
        let Some(thread) = self.threads.get_mut(vcpu) else { return };
        thread.handle.leave_cpu();
        if thread.at.take().is_some() {
            let _ = all.pin_thread(thread.handle.kick_handle().tid());
        }
    }
}
