//! The run loop of a vCPU on KVM, with a publisher that only counts entries.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};

use devices::{ExitPort, PortBus};
use protocol::VcpuId;
use protocol::payload::machine::EXIT_PORT;
use steal_time::StealTime;
use steal_time::StealTimeError;
use steal_time::publisher::{Counts, Publication, Publisher, PublisherKind};
use vmm::boot::{self, Entry};
use vmm::cpuid::Supported;
use vmm::hooks::NoHooks;
use vmm::memory::Ram;
use vmm::vcpu::control::VcpuControl;
use vmm::vcpu::run::Vcpu;
use vmm::vcpu::{EventSender, Message, Shared, VcpuExit};
use vmm::vm::host_vm::GuestVm;
use vmm::vm::machine::{self, Interrupts, Machine};
use vmm_sys_util::eventfd::EventFd;

use crate::support::{cpus, needs};

/// Counts entries into the guest.
#[derive(Debug)]
struct Entries(Arc<AtomicU64>);

impl Publisher for Entries {
    fn kind(&self) -> PublisherKind {
        PublisherKind::Monitor
    }

    fn attach(&self, _vcpu: VcpuId) -> Result<Option<Box<dyn Publication + '_>>, StealTimeError> {
        Ok(Some(Box::new(Self(Arc::clone(&self.0)))))
    }
}

impl Publication for Entries {
    fn publish(&mut self, _gpa: u64, _least_ns: u64) -> Result<(), StealTimeError> {
        Ok(())
    }
    fn withdraw(&mut self) {}
    fn deschedule(&mut self) {}

    fn schedule(&mut self, _descheduled_ns: u64) -> Result<(), StealTimeError> {
        Ok(())
    }

    fn pause(&mut self) {}
    fn discard_run_delay(&mut self, _run_delay_ns: u64) -> u64 {
        0
    }
    fn resume(&mut self) -> Result<(), StealTimeError> {
        Ok(())
    }
    fn before_entry(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    fn counts(&self) -> Counts {
        Counts::default()
    }
}

#[test]
fn publisher_is_called_before_each_entry() {
    const START: u64 = 0x10_0000;
    // in $0x70, %al; in $0x70, %al; mov $7, %al; out %al, $0xf4
    const CODE: [u8; 8] = [0xe4, 0x70, 0xe4, 0x70, 0xb0, 7, 0xe6, 0xf4];
    needs!(kvm);
    let kvm = machine::open_kvm().unwrap();
    let vm = Machine::new(&kvm, Ram::new(2).unwrap(), 1).unwrap();
    vm.add_interrupt_controllers(Interrupts::LocalOnly).unwrap();
    boot::write_tables(vm.ram(), 1).unwrap();
    vm.ram().write(START, &CODE).unwrap();
    let fd = vm.create_vcpu(VcpuId::BOOT).unwrap();
    fd.set_cpuid2(&Supported::read(&kvm).unwrap().of_vcpu(VcpuId::BOOT)).unwrap();
    boot::set_registers(&fd, VcpuId::BOOT, Entry::Long(START)).unwrap();

    let mut ports = PortBus::new();
    ports.attach(EXIT_PORT, 1, ExitPort).unwrap();
    let control = Arc::new(VcpuControl::new());
    let shared = Shared {
        ports,
        output: Arc::default(),
        control: Arc::clone(&control),
        cpus: cpus(),
        hooks: Arc::new(NoHooks),
    };
    let (sender, messages) = mpsc::channel();
    let event_sender = EventSender::new(sender, EventFd::new(0).unwrap());
    let entries = Arc::new(AtomicU64::new(0));
    let host_vm = Arc::new(GuestVm::new(vm.ram().clone(), control));
    let steal_time = StealTime::with_publisher(Arc::new(Entries(Arc::clone(&entries))), host_vm);
    let attached = steal_time.attach(VcpuId::BOOT).unwrap();
    let (_commands, inbox) = mpsc::channel();
    let stats = Vcpu::new(VcpuId::BOOT, fd, Arc::new(shared), attached, event_sender, inbox).run();

    let message = messages.recv().expect("the vCPU reports its exit");
    assert!(matches!(message, Message::Ended { exit: VcpuExit::Exit(7), .. }), "{message:?}");
    assert_eq!(stats.exits.port, 3);
    // Each exit but the last is followed by an entry, and the first follows one
    assert_eq!(entries.load(Ordering::Relaxed), stats.exits.port + stats.exits.interrupted);
}
