//! Two vCPUs share one host CPU. Each guest reads in the other's record that it is preempted.
#![expect(unsafe_code, reason = "vouches for guest memory, and for vCPUs that are stopped")]
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use nix::{sched, unistd::Pid};
use std::sync::{Arc, PoisonError, RwLock, mpsc};
use std::{ptr::NonNull, thread, time::Duration};
use steal_time::{AllStopped, HostVm, PublisherChoice, PublisherKind, StealTime, VcpuId, protocol::kvm};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;
/// WRMSR, then forever: AL = [BX], the other vCPU's `preempted`; OUT AL.
const GUEST: [u8; 7] = [0x0f, 0x30, 0x8a, 0x07, 0xee, 0xeb, 0xfb];

/// Guest memory, and a lock that each vCPU thread holds for reading inside `KVM_RUN`.
#[derive(Debug)]
struct Vm(GuestMemoryMmap, RwLock<()>);

// SAFETY: the pages stay mapped, and `stop_all` keeps every vCPU outside `KVM_RUN`.
unsafe impl HostVm for Vm {
    fn page_hva(&self, page_gpa: u64) -> Option<NonNull<u8>> {
        NonNull::new(self.0.get_host_address(GuestAddress(page_gpa)).ok()?)
    }
    fn stop_all(&self, act: &mut dyn FnMut(&AllStopped)) {
        let _stopped = self.1.write().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: no vCPU thread holds the lock. (These guests exit often. Others need a kick.)
        act(&unsafe { AllStopped::new() });
    }
}

fn run(vm: &Vm, steal: &StealTime, vcpu: VcpuId, mut fd: VcpuFd, seen: &mpsc::Sender<()>) -> Result<()> {
    let mut own = steal.attach(vcpu)?;
    loop {
        let in_guest = vm.1.read().unwrap_or_else(PoisonError::into_inner);
        own.before_entry();
        let exit = fd.run()?;
        drop(in_guest);
        match exit {
            VcpuExit::X86Wrmsr(msr) => *msr.error = own.wrmsr(msr.index, msr.data)?.error(),
            VcpuExit::IoOut(_, [1]) => seen.send(())?,
            VcpuExit::IoOut(..) => {}
            exit => return Err(format!("{exit:?}").into()),
        }
    }
}

pub(crate) fn main() -> Result<()> {
    let mut one_cpu = sched::CpuSet::new();
    one_cpu.set(sched::sched_getcpu()?)?;
    sched::sched_setaffinity(Pid::from_raw(0), &one_cpu)?;
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)])?;
    memory.write_slice(&GUEST, GuestAddress(0x1000))?;
    let userspace_addr = memory.get_host_address(GuestAddress(0))? as u64;
    let ram = kvm_userspace_memory_region { userspace_addr, memory_size: 0x10000, ..Default::default() };
    let (kvm, vm) = (Kvm::new()?, Arc::new(Vm(memory, RwLock::new(()))));
    let (vm_fd, mut cpuid) = (kvm.create_vm()?, kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?);
    // SAFETY: each thread that runs a vCPU keeps `vm`, and with it the memory.
    unsafe { vm_fd.set_user_memory_region(ram) }?;
    let steal = StealTime::new(PublisherChoice::Only(PublisherKind::Bpf), vm.clone())?;
    steal.filter_msr(&vm_fd)?;
    steal.add_cpuid(&mut cpuid);
    let mut seen = Vec::new();
    for vcpu in VcpuId::first(2) {
        let (index, fd) = (vcpu.index() as u64, vm_fd.create_vcpu(vcpu.index() as u64)?);
        fd.set_cpuid2(&cpuid)?;
        let mut sregs = fd.get_sregs()?;
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        fd.set_sregs(&sregs)?;
        let (rax, rbx, rcx) = (0x2001 + 64 * index, 0x2050 - 64 * index, kvm::MSR_STEAL_TIME.into());
        fd.set_regs(&kvm_regs { rip: 0x1000, rflags: 2, rax, rbx, rcx, ..Default::default() })?;
        let (vm, steal, (sender, receiver)) = (vm.clone(), steal.clone(), mpsc::channel());
        seen.push(receiver);
        thread::spawn(move || run(&vm, &steal, vcpu, fd, &sender).map_err(host::stdio::eprintln));
    }
    for (vcpu, seen) in seen.iter().enumerate() {
        seen.recv_timeout(Duration::from_secs(10))?;
        host::stdio::print(format_args!("vCPU {vcpu} reads that vCPU {} is preempted\n", 1 - vcpu))?;
    }
    Ok(())
}
