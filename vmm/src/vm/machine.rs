//! The machine: KVM's objects of a guest, without the vCPU threads.
//!
//! The order of the calls matters for start-up time. Memslots and the MSR filter come before the
//! interrupt controllers. Creating the controllers defers an SRCU callback. While it is pending, a
//! change of memslots or filter waits 6 to 20 ms. A payload that needs no interrupt line of a
//! device gets local APICs only. They have no such callback, so closing the machine does not wait
//! either.

use kvm_bindings::{
    KVM_CAP_HALT_POLL, KVM_CAP_SPLIT_IRQCHIP, KVM_PIT_SPEAKER_DUMMY, kvm_enable_cap, kvm_pit_config,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, NoDatamatch, VcpuFd, VmFd};
use protocol::VcpuId;
use protocol::payload::machine::COM1_IRQ;
use vmm_sys_util::eventfd::EventFd;

use crate::cpuid::Supported;
use crate::error::VmmError;
use crate::memory::Ram;

/// GPA of the task state segment on VMX hosts without unrestricted guest mode: three pages in the
/// gap below 4 GiB that neither RAM nor a device uses.
const TSS_GPA: usize = 0xfffb_d000;

/// The KVM API version, fixed since Linux 2.6.22.
const KVM_API_VERSION: i32 = 12;

/// The interrupt controllers that KVM emulates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupts {
    /// PICs, PIT, I/O APIC and local APICs, for a guest that expects a PC.
    Full,
    /// Local APICs, for timers and IPIs. Quicker to create, if KVM can create them alone.
    LocalOnly,
}

/// Opens `/dev/kvm`.
///
/// # Errors
/// [`VmmError::Kvm`] with the cure, or [`VmmError::Host`].
pub fn open_kvm() -> Result<Kvm, VmmError> {
    let kvm = Kvm::new().map_err(|error| match why_closed(error.errno()) {
        Some(why) => VmmError::Kvm(why),
        None => VmmError::cannot("open /dev/kvm")(error),
    })?;
    match kvm.get_api_version() {
        KVM_API_VERSION => Ok(kvm),
        ..0 => Err(VmmError::Kvm("it is another device (see `ls -l /dev/kvm`: KVM's is 10, 232)")),
        _ => Err(VmmError::Kvm("its API version is not 12")),
    }
}

/// Returns why `/dev/kvm` cannot be opened, and the cure, where error number `errno` states it.
fn why_closed(errno: i32) -> Option<&'static str> {
    match errno {
        libc::ENOENT => Some("it does not exist (is the KVM module loaded, and virtualization enabled?)"),
        libc::ENODEV | libc::ENXIO => {
            Some("it has no driver (load kvm_intel or kvm_amd; is virtualization enabled in the firmware?)")
        }
        libc::EACCES => Some("permission denied (join the group that owns it, often `kvm`, or try sudo)"),
        libc::EPERM => {
            Some("a cgroup or a container forbids the device (allow it there, as in --device /dev/kvm)")
        }
        _ => None,
    }
}

/// Returns the error of `KVM_CREATE_VM` with its cause, where its number states it.
fn cannot_create(error: kvm_ioctls::Error) -> VmmError {
    VmmError::cannot(match error.errno() {
        libc::EBUSY => {
            "create a virtual machine (does another hypervisor, such as VirtualBox, use the processor's \
             virtualization?)"
        }
        libc::EINTR => "create a virtual machine (a signal came; try again)",
        libc::EIO | libc::EOPNOTSUPP => {
            "create a virtual machine (is virtualization enabled in the firmware?)"
        }
        _ => "create a virtual machine",
    })(error)
}

/// A virtual machine. It has no interrupt controllers and no vCPUs until they are added.
#[derive(Debug)]
pub struct Machine {
    /// Dropped before `ram`, which KVM uses until the machine is closed.
    fd: VmFd,
    ram: Ram,
    supported: Supported,
    com1_line: EventFd,
}

impl Machine {
    /// Creates a machine with `ram` for `vcpus` vCPUs.
    ///
    /// # Errors
    /// [`VmmError::Usage`] if KVM cannot run that many vCPUs, or [`VmmError::Host`].
    pub fn new(kvm: &Kvm, ram: Ram, vcpus: usize) -> Result<Self, VmmError> {
        let max = kvm.get_max_vcpus().min(protocol::MAX_VCPUS);
        if vcpus > max {
            return Err(VmmError::Usage(format!(
                "KVM on this host runs up to {max} vCPUs in a guest, and {vcpus} were asked for (try --vcpus \
                 {max})"
            )));
        }
        let fd = kvm.create_vm().map_err(cannot_create)?;
        ram.add_memslots(&fd)?;
        fd.set_tss_address(TSS_GPA).map_err(VmmError::cannot("set the address of the task state segment"))?;
        // A halted vCPU gives up its CPU at once. Halt polling would hide the cost of halting, and
        // keep the CPU from the vCPU that the halted one waits for.
        if fd.check_extension_raw(KVM_CAP_HALT_POLL.into()) > 0 {
            enable(&fd, KVM_CAP_HALT_POLL, 0).map_err(VmmError::cannot("disable halt polling"))?;
        }
        let supported = Supported::read(kvm)?;
        let com1_line = EventFd::new(libc::EFD_NONBLOCK);
        let com1_line = com1_line.map_err(VmmError::cannot("create the interrupt line of COM1"))?;
        Ok(Self { fd, ram, supported, com1_line })
    }

    /// Adds the interrupt controllers. Call it after setting the MSR filter, and before creating
    /// the first vCPU.
    ///
    /// # Errors
    /// [`VmmError::Host`] if KVM refuses.
    pub fn add_interrupt_controllers(&self, interrupts: Interrupts) -> Result<(), VmmError> {
        if interrupts == Interrupts::LocalOnly && self.fd.check_extension(Cap::SplitIrqchip) {
            // 0 routes: there is no I/O APIC for an interrupt line.
            let enabled = enable(&self.fd, KVM_CAP_SPLIT_IRQCHIP, 0);
            enabled.map_err(VmmError::cannot("create the local APICs"))
        } else {
            self.fd.create_irq_chip().map_err(VmmError::cannot("create the interrupt controllers"))?;
            // Guests calibrate the TSC through the speaker port, which the flag adds.
            let timer = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..kvm_pit_config::default() };
            self.fd.create_pit2(timer).map_err(VmmError::cannot("create the interval timer"))?;
            let registered = self.fd.register_irqfd(&self.com1_line, COM1_IRQ);
            registered.map_err(VmmError::cannot("connect the interrupt line of COM1"))
        }
    }

    /// Makes KVM signal `event` on each write to `port`, without an exit.
    ///
    /// Call it after setting the memslots and the MSR filter: it, too, defers a callback that their
    /// change would wait for.
    ///
    /// # Errors
    /// [`VmmError::Host`] if KVM refuses.
    pub fn add_port_event(&self, port: u16, event: &EventFd) -> Result<(), VmmError> {
        let address = IoEventAddress::Pio(port.into());
        let registered = self.fd.register_ioevent(event, &address, NoDatamatch);
        registered.map_err(VmmError::cannot(format!("connect an event to port {port:#x}")))
    }

    /// Creates a vCPU.
    ///
    /// # Errors
    /// [`VmmError::Host`] if KVM refuses.
    pub fn create_vcpu(&self, vcpu: VcpuId) -> Result<VcpuFd, VmmError> {
        self.fd.create_vcpu(vcpu.apic_id().into()).map_err(VmmError::cannot_vcpu("create", vcpu))
    }

    /// Returns the file descriptor of the virtual machine.
    pub fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// Returns guest memory.
    pub fn ram(&self) -> &Ram {
        &self.ram
    }

    /// Returns the CPUID leaves that KVM supports.
    pub fn supported(&self) -> &Supported {
        &self.supported
    }

    /// Returns a copy of the interrupt line of COM1.
    ///
    /// # Errors
    /// [`VmmError::Host`] if the process is out of file descriptors.
    pub fn com1_line(&self) -> Result<EventFd, VmmError> {
        self.com1_line.try_clone().map_err(VmmError::cannot("copy the interrupt line of COM1"))
    }
}

fn enable(fd: &VmFd, cap: u32, value: u64) -> Result<(), kvm_ioctls::Error> {
    let mut cap = kvm_enable_cap { cap, ..kvm_enable_cap::default() };
    cap.args[0] = value;
    fd.enable_cap(&cap)
}

#[cfg(test)]
mod tests {
    use host::error_chain::one_line;

    use super::*;

    #[test]
    fn refusal_to_open_kvm_is_explained_by_its_error_number() {
        for (errno, cure) in [
            (libc::ENOENT, "module loaded"),
            (libc::ENODEV, "firmware"),
            (libc::EACCES, "group"),
            (libc::EPERM, "container"),
        ] {
            assert!(why_closed(errno).is_some_and(|why| why.contains(cure)), "{errno}");
        }
        assert_eq!([libc::EMFILE, libc::ENOMEM, libc::EIO].map(why_closed), [None; 3]);
    }

    #[test]
    fn refusal_to_create_a_machine_is_explained_by_its_error_number() {
        for (errno, cure) in [
            (libc::EBUSY, "VirtualBox"),
            (libc::EIO, "firmware"),
            (libc::EINTR, "try again"),
            (libc::EMFILE, "ulimit -n"),
            (libc::ENOMEM, "cgroup"),
        ] {
            let line = one_line(&cannot_create(kvm_ioctls::Error::new(errno)));
            assert!(line.starts_with("Cannot create a virtual machine") && line.contains(cure), "{line}");
        }
    }
}
