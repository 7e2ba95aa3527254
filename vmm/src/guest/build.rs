//! Builds the machine of a guest and loads its payload.

use std::sync::Arc;

use devices::{Device, ExitPort, I8042, PortBus, Serial, SerialInput};
use kvm_ioctls::VcpuFd;
use protocol::VcpuId;
use protocol::payload::machine::{COM1, EXIT_PORT, I8042 as I8042_PORTS, I8042_COMMAND};
use protocol::payload::note::Note;
use protocol::payload::params::Boot;
use steal_time::filter::filter_msr;
use steal_time::publisher::{PublisherChoice, PublisherKind};
use vmm_sys_util::eventfd::EventFd;

use super::config::GuestConfig;
use crate::boot::Entry;
use crate::console::OutputBuffer;
use crate::console::output::Transmitter;
use crate::error::VmmError;
use crate::loader::Image;
use crate::memory::Ram;
use crate::timings::Timings;
use crate::vm::machine::{self, Interrupts, Machine};

/// A machine with its payload loaded, and with its boot vCPU.
pub(super) struct Built {
    pub(super) machine: Machine,
    pub(super) boot_vcpu: VcpuFd,
    pub(super) entry: Entry,
    pub(super) note: Option<Note>,
}

impl Built {
    pub(super) fn new(config: &GuestConfig, timings: &mut Timings) -> Result<Self, VmmError> {
        let kvm = machine::open_kvm()?;
        let payload = config.payload.open()?;
        let entry = payload.entry(config.start);
        let initrd = config.initrd.as_deref().map(|path| Image::open("initrd", path)).transpose()?;
        let ram = Ram::new(config.memory_mib)?;
        let interrupts = match entry {
            Entry::Direct(_) => Interrupts::LocalOnly,
            Entry::Pvh(_) | Entry::Long(_) => Interrupts::Full,
        };
        let machine = Machine::new(&kvm, ram, config.vcpus)?;
        if config.publisher != PublisherChoice::Only(PublisherKind::Kernel) {
            filter_msr(machine.fd())?;
        }
        machine.add_interrupt_controllers(interrupts)?;
        let boot_vcpu = machine.create_vcpu(VcpuId::BOOT)?;
        timings.mark("machine made");

        let note = payload.note();
        let mut cmdline = config.cmdline.clone();
        if note.is_some() {
            let tsc_khz = boot_vcpu.get_tsc_khz().ok().filter(|khz| *khz > 0);
            let boot = Boot { vcpus: u16::try_from(config.vcpus).ok(), tsc_khz, start: config.start };
            cmdline = format!("{cmdline} {boot}");
        }
        payload.load(machine.ram(), config.vcpus, &cmdline, initrd.as_ref())?;
        timings.mark("payload loaded");
        Ok(Self { machine, boot_vcpu, entry, note })
    }
}

/// The monitor's end of COM1.
pub(super) struct Line {
    pub(super) input: SerialInput,
    /// Signalled when the receive FIFO is empty.
    pub(super) room: EventFd,
}

/// Returns the port bus with its devices. COM1 transmits to `output`.
pub(super) fn port_bus(machine: &Machine, output: &Arc<OutputBuffer>) -> Result<(PortBus, Line), VmmError> {
    let room = EventFd::new(libc::EFD_NONBLOCK).map_err(VmmError::cannot("create an eventfd for COM1"))?;
    let copy = room.try_clone().map_err(VmmError::cannot("copy an eventfd for COM1"))?;
    let (serial, input) = Serial::new(machine.com1_line()?, copy, Transmitter(Arc::clone(output)));
    let mut ports = PortBus::new();
    attach(&mut ports, COM1, 8, serial)?;
    attach(&mut ports, I8042_PORTS, I8042_COMMAND - I8042_PORTS + 1, I8042::new())?;
    attach(&mut ports, EXIT_PORT, 1, ExitPort)?;
    Ok((ports, Line { input, room }))
}

fn attach(
    ports: &mut PortBus,
    first: u16,
    count: u16,
    device: impl Device + 'static,
) -> Result<(), VmmError> {
    ports.attach(first, count, device).map_err(VmmError::cannot("attach a device"))
}
