//! Steal time of one virtual machine.

use std::sync::Arc;

use kvm_bindings::CpuId;
use kvm_ioctls::VmFd;
use protocol::VcpuId;

use crate::error::StealTimeError;
use crate::host_vm::HostVm;
use crate::publisher::{MsrOwner, Publisher, PublisherChoice, PublisherKind};
use crate::saved::{SavedStealTime, SavedVcpu, VERSION};
use crate::vcpu::VcpuStealTime;
use crate::{cpuid, filter};
use host::cpus::Cpus;

/// Paravirtual steal time for one VM: CPUID 0x40000001 EAX bit 5, MSR 0x4b564d03, and one record
/// per vCPU.
#[derive(Clone, Debug)]
pub struct StealTime {
    publisher: Arc<dyn Publisher>,
    vm: Arc<dyn HostVm>,
}

impl StealTime {
    /// Creates the steal time of `vm`, with the publisher that `choice` and the host settle on.
    ///
    /// The vCPU threads use the host CPUs that the calling thread may use now. A monitor whose
    /// threads use others, or that loads the BPF program while it builds the VM, calls
    /// [`PublisherChoice::begin_loading`] and [`with_publisher`](Self::with_publisher).
    ///
    /// # Errors
    /// [`StealTimeError`] if the host refuses a publisher that is chosen by name.
    pub fn new(choice: PublisherChoice, vm: Arc<dyn HostVm>) -> Result<Self, StealTimeError> {
        let is_kernel = choice == PublisherChoice::Only(PublisherKind::Kernel);
        let kernel_can = is_kernel && cpuid::kvm_has_steal_time()?;
        let selection = choice.load(vm.max_vcpus()).settle(kernel_can)?;
        let publisher = selection.publisher(Arc::clone(&vm), &Cpus::allowed()?)?;
        Ok(Self::with_publisher(publisher, vm))
    }

    /// Creates the steal time of `vm`, with a publisher that the caller made.
    pub fn with_publisher(publisher: Arc<dyn Publisher>, vm: Arc<dyn HostVm>) -> Self {
        Self { publisher, vm }
    }

    /// Makes KVM pass accesses to the MSR to userspace, unless KVM owns it. Called before the first
    /// vCPU runs.
    ///
    /// # Errors
    /// [`StealTimeError`] if KVM lacks the capability (Linux 5.10) or refuses.
    pub fn filter_msr(&self, vm: &VmFd) -> Result<(), StealTimeError> {
        if self.owner() == MsrOwner::Kernel { Ok(()) } else { filter::filter_msr(vm) }
    }

    /// Announces steal time in `cpuid`, KVM's supported leaves, exactly if the MSR exists.
    pub fn add_cpuid(&self, cpuid: &mut CpuId) {
        cpuid::set_steal_time(cpuid, self.owner() != MsrOwner::Absent);
    }

    /// Attaches the calling thread as the thread of `vcpu`, until the result is dropped.
    ///
    /// # Errors
    /// [`StealTimeError`] if the host refuses.
    pub fn attach(&self, vcpu: VcpuId) -> Result<VcpuStealTime<'_>, StealTimeError> {
        let publication = self.publisher.attach(vcpu)?;
        Ok(VcpuStealTime::new(vcpu, self.owner(), Arc::clone(&self.vm), publication))
    }

    /// Combines the results of [`VcpuStealTime::save`], in vCPU order.
    pub fn saved(&self, vcpus: Vec<SavedVcpu>) -> SavedStealTime {
        SavedStealTime { version: VERSION, vcpus, unlogged_pages: self.publisher.unlogged_pages() }
    }

    /// Returns which publisher writes the records.
    pub fn kind(&self) -> PublisherKind {
        self.publisher.kind()
    }

    /// Returns the owner of the MSR: it completes the guest's accesses.
    pub fn owner(&self) -> MsrOwner {
        self.kind().msr_owner()
    }

    /// Returns the publisher.
    pub fn publisher(&self) -> &dyn Publisher {
        &*self.publisher
    }
}

#[cfg(test)]
mod tests {
    use protocol::kvm::MSR_STEAL_TIME;

    use super::*;
    use crate::host_vm::tests::Memory;
    use crate::vcpu::Access;

    #[test]
    fn publisher_off_offers_no_feature_and_every_access_faults() {
        let choice = PublisherChoice::Only(PublisherKind::Off);
        let steal_time = StealTime::new(choice, Memory::mib(1)).unwrap();
        assert_eq!((steal_time.kind(), steal_time.owner()), (PublisherKind::Off, MsrOwner::Absent));
        let mut vcpu = steal_time.attach(VcpuId::BOOT).unwrap();
        assert_eq!(vcpu.rdmsr(MSR_STEAL_TIME), Access::Fault);
        assert_eq!(vcpu.wrmsr(MSR_STEAL_TIME, 0x1001).unwrap().error(), 1);
    }

    #[test]
    fn publisher_that_kicks_is_refused_without_a_signal_and_another_is_named() {
        let choice = PublisherChoice::Only(PublisherKind::Monitor);
        let error = StealTime::new(choice, Memory::mib(1)).unwrap_err();
        assert!(matches!(error, StealTimeError::NoKickSignal(PublisherKind::Monitor)), "{error}");
        assert_eq!(error.alternative(), Some(PublisherChoice::Only(PublisherKind::Bpf)));
    }
}
