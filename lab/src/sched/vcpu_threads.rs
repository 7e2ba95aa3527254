//! The vCPU threads of all guests, and what the mechanisms did to them.
//!
//! Each operation compares with the last one and skips system calls that would change nothing.

use std::io;
use std::sync::Arc;

use crate::policy::{Cpu, Vcpu};
use host::cpus::Cpus;
use host::thread::{Attributes, Class, set_class};
use vmm::vcpu::control::{CpuHandoff, VcpuHandle};

/// The vCPU threads of all guests.
#[derive(Debug)]
pub(super) struct VcpuThreads {
    threads: Vec<VcpuThread>,
    /// The host's numbers of the CPUs.
    cpus: Vec<usize>,
    /// Passes each CPU from one vCPU thread to the next.
    handoffs: Vec<Arc<CpuHandoff>>,
}

#[derive(Debug)]
struct VcpuThread {
    handle: Arc<VcpuHandle>,
    pinned_to: Option<Cpu>,
    class: Class,
    /// What it had before its class was first changed; it gets that back.
    original: Option<Attributes>,
}

impl VcpuThread {
    fn tid(&self) -> libc::pid_t {
        self.handle.kick_handle().tid()
    }
}

impl VcpuThreads {
    pub(super) fn new(handles: Vec<Arc<VcpuHandle>>, cpus: Vec<usize>) -> Self {
        let thread = |handle| VcpuThread { handle, pinned_to: None, class: Class::Fair, original: None };
        let handoffs = cpus.iter().map(|_| Arc::default()).collect();
        Self { threads: handles.into_iter().map(thread).collect(), cpus, handoffs }
    }

    pub(super) fn count(&self) -> usize {
        self.threads.len()
    }

    pub(super) fn tid(&self, vcpu: Vcpu) -> libc::pid_t {
        self.threads.get(vcpu).map_or(0, VcpuThread::tid)
    }

    /// Pins the thread of `vcpu` to `cpu`. Ignores a thread that has exited.
    pub(super) fn pin(&mut self, vcpu: Vcpu, cpu: Cpu) {
        let Some(thread) = self.threads.get_mut(vcpu).filter(|thread| thread.pinned_to != Some(cpu)) else {
            return;
        };
        thread.pinned_to = Some(cpu);
        if let Some(number) = self.cpus.get(cpu) {
            let _ = Cpus::single(*number).pin_thread(thread.tid());
        }
    }

    /// Changes the scheduling class of the thread of `vcpu`. `Class::Fair` is what it had before
    /// the first change.
    ///
    /// # Errors
    /// The host refuses the class.
    pub(super) fn set_class(&mut self, vcpu: Vcpu, class: Class) -> io::Result<()> {
        let Some(thread) = self.threads.get_mut(vcpu).filter(|thread| thread.class != class) else {
            return Ok(());
        };
        thread.class = class;
        if thread.original.is_none() {
            thread.original = Attributes::of(thread.tid()).ok();
        }
        match (class, &thread.original) {
            (Class::Fair, Some(original)) => original.restore(thread.tid()),
            _ => set_class(thread.tid(), class),
        }
    }

    pub(super) fn class(&self, vcpu: Vcpu) -> Class {
        self.threads.get(vcpu).map_or(Class::Fair, |thread| thread.class)
    }

    pub(super) fn deschedule(&self, vcpu: Vcpu) {
        if let Some(thread) = self.threads.get(vcpu).filter(|thread| !thread.handle.is_descheduled()) {
            thread.handle.deschedule();
        }
    }

    pub(super) fn schedule(&self, vcpu: Vcpu) {
        if let Some(thread) = self.threads.get(vcpu).filter(|thread| thread.handle.is_descheduled()) {
            thread.handle.schedule();
        }
    }

    /// Schedules `vcpu` on `cpu` as soon as the thread that runs there has left.
    pub(super) fn hand_off(&mut self, cpu: Cpu, vcpu: Vcpu) {
        let (Some(thread), Some(handoff)) = (self.threads.get(vcpu), self.handoffs.get(cpu)) else { return };
        if thread.pinned_to != Some(cpu) {
            thread.handle.leave_cpu();
        }
        handoff.give(&thread.handle);
    }

    /// Leaves `cpu` without a successor: it goes idle when its thread leaves.
    pub(super) fn cancel_handoff(&self, cpu: Cpu) {
        if let Some(handoff) = self.handoffs.get(cpu) {
            handoff.close();
        }
    }

    /// Gives all threads back to the host's scheduler, in their original state.
    pub(super) fn release_all(&mut self) {
        for vcpu in 0..self.threads.len() {
            self.release(vcpu);
        }
    }

    /// Gives the thread of `vcpu` back to the host's scheduler, in its original state.
    pub(super) fn release(&mut self, vcpu: Vcpu) {
        let all = self.cpus.iter().copied().collect::<Cpus>();
        // Fails only for a thread that has exited.
        let _ = self.set_class(vcpu, Class::Fair);
        self.schedule(vcpu);
        let Some(thread) = self.threads.get_mut(vcpu) else { return };
        thread.handle.leave_cpu();
        if thread.pinned_to.take().is_some() {
            let _ = all.pin_thread(thread.tid());
        }
    }
}
