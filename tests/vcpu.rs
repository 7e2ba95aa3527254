//! A vCPU's run loop, on the real KVM, with a publisher that only counts what it is asked.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on says so and fails"
)]

mod support;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};

use devices::{ExitPort, PortBus};
use protocol::VcpuId;
use protocol::machine::EXIT_PORT;
use support::has_kvm;
use vmm::boot::{self, Entry};
use vmm::cpuid::Supported;
use vmm::gate::Gate;
use vmm::memory::Ram;
use vmm::publisher::{Counts, MsrOwner, Publication, PublisherError};
use vmm::steal_time::msr::StealTimeMsr;
use vmm::vcpu::offer::Offers;
use vmm::vcpu::run::Vcpu;
use vmm::vcpu::{Ending, Message, Outbox, Shared};
use vmm::vm::machine::{self, Interrupts, Machine};
use vmm_sys_util::eventfd::EventFd;

/// Counts entries.
#[derive(Debug)]
struct Entries<'t>(&'t AtomicU64);

impl Publication for Entries<'_> {
    fn publish(&mut self, _gpa: u64, _least_ns: u64) -> Result<(), PublisherError> {
        Ok(())
    }
    fn withdraw(&mut self) {}
    fn take_init(&mut self) -> bool {
        false
    }
    fn park(&mut self) {}

    fn unpark(&mut self, _parked_ns: u64) -> Result<(), PublisherError> {
        Ok(())
    }

    fn rest(&mut self) {}
    fn forget_waiting(&mut self, _run_delay_ns: u64) -> u64 {
        0
    }
    fn rise(&mut self) -> Result<(), PublisherError> {
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
fn publisher_is_told_before_each_entry() {
    const START: u64 = 0x10_0000;
    // in $0x70, %al; in $0x70, %al; mov $7, %al; out %al, $0xf4
    const CODE: [u8; 8] = [0xe4, 0x70, 0xe4, 0x70, 0xb0, 7, 0xe6, 0xf4];
    if !has_kvm() {
        return;
    }
    let kvm = machine::open_kvm().unwrap();
    let vm = Machine::new(&kvm, Ram::new(2).unwrap(), 1).unwrap();
    vm.add_interrupt_controllers(Interrupts::LocalOnly).unwrap();
    boot::write_tables(vm.ram(), 1).unwrap();
    vm.ram().write(START, &CODE).unwrap();
    let fd = vm.create_vcpu(VcpuId::BOOT).unwrap();
    fd.set_cpuid2(&Supported::read(&kvm).unwrap().of_vcpu(VcpuId::BOOT, MsrOwner::Nobody)).unwrap();
    boot::set_registers(&fd, VcpuId::BOOT, Entry::Long(START)).unwrap();

    let mut ports = PortBus::new();
    ports.attach(EXIT_PORT, 1, ExitPort).unwrap();
    let shared = Shared {
        ports,
        gate: Arc::new(Gate::new()),
        cpus: support::cpus(),
        ram: vm.ram().clone(),
        offers: Offers::default(),
        on_kick: std::sync::OnceLock::new(),
    };
    let (sender, told) = mpsc::channel();
    let outbox = Outbox::new(sender, EventFd::new(0).unwrap());
    let entries = AtomicU64::new(0);
    let steal_time = StealTimeMsr::new(Some(Box::new(Entries(&entries))));
    let (_errands, inbox) = mpsc::channel();
    let steal_time = (steal_time, MsrOwner::Monitor);
    let remains = Vcpu::new(VcpuId::BOOT, fd, Arc::new(shared), steal_time, outbox, inbox).run();

    let message = told.recv().expect("the vCPU tells how it ended");
    assert!(matches!(message, Message::Ended { ending: Ending::Exit(7), .. }), "{message:?}");
    assert_eq!(remains.exits.port, 3);
    // Each exit but the last is followed by an entry, and one came before the first.
    assert_eq!(entries.load(Ordering::Relaxed), remains.exits.port + remains.exits.interrupted);
}
