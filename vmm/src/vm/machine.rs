//! The machine: KVM's side of a guest, without the threads of its vCPUs, in the order in which it is quick to make.
//!
//! Memslots and the MSR filter come before the interrupt controllers: their creation defers a callback, and whatever
//! waits for readers of these tables while it is pending waits for it too, 6 to 20 ms. A payload that needs no
//! interrupt line of a device gets the local APICs only, which has no such callback, and neither waits here nor when
//! the machine is closed.

use std::io;

use kvm_bindings::{
    KVM_CAP_HALT_POLL, KVM_CAP_SPLIT_IRQCHIP, KVM_PIT_SPEAKER_DUMMY, kvm_enable_cap, kvm_pit_config,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, NoDatamatch, VcpuFd, VmFd};
use protocol::VcpuId;
use protocol::payload::machine::COM1_IRQ;
use vmm_sys_util::eventfd::EventFd;

use crate::cpuid::Supported;
use crate::memory::{MemoryError, Ram};

/// Where VMX hosts without unrestricted guests keep a task state segment: three pages, out of everybody's way.
const TSS_ADDRESS: usize = 0xfffb_d000;

/// The only version of the KVM API that there is.
const KVM_API_VERSION: i32 = 12;

/// KVM does not give us a virtual machine.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// There is no KVM.
    #[error(
        "Cannot open /dev/kvm: it does not exist (is the KVM module loaded, and virtualization enabled?)"
    )]
    NoKvm,
    /// KVM is not open to us.
    #[error(
        "Cannot open /dev/kvm: permission denied (join the group that owns it, often `kvm`, or try sudo)"
    )]
    NoPermission,
    /// Some other reason.
    #[error("Cannot open /dev/kvm")]
    Open(#[source] kvm_ioctls::Error),
    /// Not the KVM we know.
    #[error("/dev/kvm speaks version {0} of its API, and this monitor version {KVM_API_VERSION}")]
    ApiVersion(i32),
    /// More than KVM can.
    #[error("KVM here runs at most {most} vCPUs in a guest, and {asked} were asked for (try --vcpus {most})")]
    TooManyVcpus {
        /// What was asked for.
        asked: usize,
        /// KVM's limit.
        most: usize,
    },
    /// A step of making the machine failed.
    #[error("KVM cannot {what}")]
    Make {
        /// What it was to do.
        what: &'static str,
        /// Its reason.
        source: kvm_ioctls::Error,
    },
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// An eventfd could not be had.
    #[error("Cannot make an interrupt line")]
    Line(#[source] io::Error),
}

/// Which interrupt controllers the kernel emulates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupts {
    /// PICs, PIT, I/O APIC and local APICs: what a guest expects that knows the PC.
    Full,
    /// Local APICs are enough, for timers and kicks between vCPUs; it is quicker where KVM can make them alone.
    LocalOnly,
}

/// Opens `/dev/kvm`.
///
/// # Errors
/// [`MachineError`]: why not.
pub fn open_kvm() -> Result<Kvm, MachineError> {
    let kvm = Kvm::new().map_err(|error| match error.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => MachineError::NoKvm,
        libc::EACCES | libc::EPERM => MachineError::NoPermission,
        _ => MachineError::Open(error),
    })?;
    match kvm.get_api_version() {
        KVM_API_VERSION => Ok(kvm),
        version => Err(MachineError::ApiVersion(version)),
    }
}

/// A virtual machine, without interrupt controllers and vCPUs at first.
#[derive(Debug)]
pub struct Machine {
    /// Closed before the memory goes: KVM uses it as long as the machine exists.
    fd: VmFd,
    ram: Ram,
    supported: Supported,
    com1_line: EventFd,
}

impl Machine {
    /// Makes a machine of `ram` for `vcpus` vCPUs.
    ///
    /// # Errors
    /// [`MachineError`].
    pub fn new(kvm: &Kvm, ram: Ram, vcpus: usize) -> Result<Self, MachineError> {
        let most = kvm.get_max_vcpus().min(protocol::MAX_VCPUS);
        if vcpus > most {
            return Err(MachineError::TooManyVcpus { asked: vcpus, most });
        }
        let failed = |what| move |source| MachineError::Make { what, source };
        let fd = kvm.create_vm().map_err(failed("make a virtual machine"))?;
        ram.give_to(&fd)?;
        fd.set_tss_address(TSS_ADDRESS).map_err(failed("place the task state segment"))?;
        // A vCPU that halts gives its CPU up at once. Polling would hide what halting costs, and hold the CPU that
        // the halted one waits for somebody else to get.
        if fd.check_extension_raw(KVM_CAP_HALT_POLL.into()) > 0 {
            enable(&fd, KVM_CAP_HALT_POLL, 0).map_err(failed("switch halt polling off"))?;
        }
        let supported = Supported::read(kvm).map_err(failed("tell the CPUID that it supports"))?;
        let com1_line = EventFd::new(libc::EFD_NONBLOCK).map_err(MachineError::Line)?;
        Ok(Self { fd, ram, supported, com1_line })
    }

    /// Adds the interrupt controllers: after memory and MSR filter, before the first vCPU.
    ///
    /// # Errors
    /// [`MachineError::Make`].
    pub fn add_interrupt_controllers(&self, interrupts: Interrupts) -> Result<(), MachineError> {
        let failed = |what| move |source| MachineError::Make { what, source };
        if interrupts == Interrupts::LocalOnly && self.fd.check_extension(Cap::SplitIrqchip) {
            // No line is routed: there is no I/O APIC to which one could lead.
            enable(&self.fd, KVM_CAP_SPLIT_IRQCHIP, 0).map_err(failed("make the local APICs"))
        } else {
            self.fd.create_irq_chip().map_err(failed("make the interrupt controllers"))?;
            // Its speaker port too: a guest measures its clock by it.
            let timer = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..kvm_pit_config::default() };
            self.fd.create_pit2(timer).map_err(failed("make the interval timer"))?;
            self.fd.register_irqfd(&self.com1_line, COM1_IRQ).map_err(failed("connect the serial line"))
        }
    }

    /// Makes KVM signal `event` on each write to `port`: no vCPU leaves the guest for it. After interrupt controllers, since
    /// memory may not change once anything waits on a bus.
    ///
    /// # Errors
    /// [`MachineError`].
    pub fn add_port_event(&self, port: u16, event: &EventFd) -> Result<(), MachineError> {
        let port = IoEventAddress::Pio(port.into());
        let connected = self.fd.register_ioevent(event, &port, NoDatamatch);
        connected.map_err(|source| MachineError::Make { what: "connect an event to a port", source })
    }

    /// KVM's handle.
    pub fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// Guest memory.
    pub fn ram(&self) -> &Ram {
        &self.ram
    }

    /// What KVM supports in CPUID.
    pub fn supported(&self) -> &Supported {
        &self.supported
    }

    /// COM1's interrupt line.
    ///
    /// # Errors
    /// The host's reason, out of file descriptors most likely.
    pub fn com1_line(&self) -> Result<EventFd, MachineError> {
        self.com1_line.try_clone().map_err(MachineError::Line)
    }

    /// Makes a vCPU.
    ///
    /// # Errors
    /// [`MachineError::Make`].
    pub fn create_vcpu(&self, vcpu: VcpuId) -> Result<VcpuFd, MachineError> {
        let made = self.fd.create_vcpu(vcpu.apic_id().into());
        made.map_err(|source| MachineError::Make { what: "make a vCPU", source })
    }
}

fn enable(fd: &VmFd, cap: u32, value: u64) -> Result<(), kvm_ioctls::Error> {
    let mut cap = kvm_enable_cap { cap, ..kvm_enable_cap::default() };
    cap.args[0] = value;
    fd.enable_cap(&cap)
}
