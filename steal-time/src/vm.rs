//! Steal time of one virtual machine: the library's door.

use std::sync::Arc;

use kvm_bindings::CpuId;
use kvm_ioctls::VmFd;
use protocol::VcpuId;

use super::host_vm::HostVm;
use super::saved::{SavedStealTime, SavedVcpu, VERSION};
use super::vcpu::VcpuStealTime;
use super::{cpuid, filter};
use crate::publisher::{MsrOwner, Publisher, PublisherChoice, PublisherKind, StealTimeError};
use host::cpus::Cpus;

/// Paravirtual steal time for one VM: CPUID 0x40000001 EAX bit 5, MSR 0x4b564d03, and one record per vCPU.
#[derive(Clone, Debug)]
pub struct StealTime {
    publisher: Arc<dyn Publisher>,
    vm: Arc<dyn HostVm>,
}

impl StealTime {
    /// Settles on a publisher for `vcpus` vCPUs of `vm`, whose threads use the host CPUs `cpus`.
    ///
    /// `kernel_can` is whether KVM's supported CPUID has steal time ([`cpuid::has_steal_time`]). A monitor that wants to load
    /// the BPF program while it builds the VM uses [`PublisherChoice::begin_loading`] and [`StealTime::with_publisher`].
    ///
    /// # Errors
    /// [`StealTimeError`] if the host refuses a publisher that was asked for by name.
    pub fn new(
        choice: PublisherChoice,
        vcpus: usize,
        cpus: &Cpus,
        kernel_can: bool,
        vm: Arc<dyn HostVm>,
    ) -> Result<Self, StealTimeError> {
        let selection = choice.begin_loading(vcpus).finish().settle(kernel_can)?;
        Ok(Self::with_publisher(selection.publisher(Arc::clone(&vm), cpus)?, vm))
    }

    /// Uses a publisher that was made elsewhere.
    pub fn with_publisher(publisher: Arc<dyn Publisher>, vm: Arc<dyn HostVm>) -> Self {
        Self { publisher, vm }
    }

    /// Makes KVM hand the MSR to userspace, unless KVM itself is to own it. Call it before the first vCPU runs.
    ///
    /// # Errors
    /// [`StealTimeError`] if KVM lacks the capability (Linux 5.10) or refuses.
    pub fn filter_msr(&self, vm: &VmFd) -> Result<(), StealTimeError> {
        if self.owner() == MsrOwner::Kernel { Ok(()) } else { filter::filter_msr(vm) }
    }

    /// Announces steal time in `cpuid`, KVM's supported leaves, exactly if the MSR exists.
    pub fn add_cpuid(&self, cpuid: &mut CpuId) {
        cpuid::set_steal_time(cpuid, self.owner() != MsrOwner::Nobody);
    }

    /// Attaches the calling thread as the thread of `vcpu`, until the result is dropped.
    ///
    /// # Errors
    /// [`StealTimeError`] if the host refuses.
    pub fn attach(&self, vcpu: VcpuId) -> Result<VcpuStealTime<'_>, StealTimeError> {
        let publication = self.publisher.attach(vcpu)?;
        Ok(VcpuStealTime::new(vcpu, self.owner(), Arc::clone(&self.vm), publication))
    }

    /// Combines what [`VcpuStealTime::save`] returned for each vCPU, from the boot vCPU on.
    pub fn saved(&self, vcpus: Vec<SavedVcpu>) -> SavedStealTime {
        SavedStealTime { version: VERSION, vcpus, unlogged_pages: self.publisher.unlogged_pages() }
    }

    /// Returns which publisher writes the records.
    pub fn kind(&self) -> PublisherKind {
        self.publisher.kind()
    }

    /// Returns the component that answers the guest's accesses to the MSR.
    pub fn owner(&self) -> MsrOwner {
        self.kind().msr_owner()
    }

    /// Returns the publisher.
    pub fn publisher(&self) -> &dyn Publisher {
        &*self.publisher
    }
}
