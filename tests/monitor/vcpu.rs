//! The run loop of a vCPU on KVM, with a publisher that only counts entries.

use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use devices::{ExitPort, PortBus};
use host::kick;
use protocol::VcpuId;
use protocol::payload::machine::EXIT_PORT;
use steal_time::StealTime;
use steal_time::StealTimeError;
use steal_time::publisher::{Counts, Publication, Publisher, PublisherKind};
use vmm::boot::{self, Entry};
use vmm::cpuid::Supported;
use vmm::hooks::NoHooks;
use vmm::memory::Ram;
use vmm::vcpu::command::VcpuCommand;
use vmm::vcpu::control::VcpuControl;
use vmm::vcpu::run::{Vcpu, VcpuStats};
use vmm::vcpu::{EventSender, Message, Shared, VcpuExit};
use vmm::vm::host_vm::GuestVm;
use vmm::vm::machine::{self, Interrupts, Machine};
use vmm_sys_util::eventfd::EventFd;

use crate::support::{cpus, needs};

/// A call of the run loop to a publication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Pause,
    Resume,
    BeforeEntry,
}

/// Logs the calls of the run loop.
#[derive(Clone, Debug, Default)]
struct Calls(Arc<Mutex<Vec<Call>>>);

impl Calls {
    fn push(&self, call: Call) {
        self.0.lock().unwrap().push(call);
    }

    fn all(&self) -> Vec<Call> {
        self.0.lock().unwrap().clone()
    }
}

impl Publisher for Calls {
    fn kind(&self) -> PublisherKind {
        PublisherKind::Monitor
    }

    fn attach(&self, _vcpu: VcpuId) -> Result<Option<Box<dyn Publication + '_>>, StealTimeError> {
        Ok(Some(Box::new(self.clone())))
    }
}

impl Publication for Calls {
    fn publish(&mut self, _gpa: u64, _least_ns: u64) -> Result<(), StealTimeError> {
        Ok(())
    }
    fn withdraw(&mut self) {}
    fn deschedule(&mut self) {}

    fn schedule(&mut self, _descheduled_ns: u64) -> Result<(), StealTimeError> {
        Ok(())
    }

    fn pause(&mut self) {
        self.push(Call::Pause);
    }
    fn discard_run_delay(&mut self, _run_delay_ns: u64) -> u64 {
        0
    }
    fn resume(&mut self) -> Result<(), StealTimeError> {
        self.push(Call::Resume);
        Ok(())
    }
    fn before_entry(&mut self) {
        self.push(Call::BeforeEntry);
    }
    fn counts(&self) -> Counts {
        Counts::default()
    }
}

/// Runs a vCPU that executes `code` until it ends. Its publisher logs to `calls`.
fn run(
    code: &[u8],
    calls: &Calls,
    control: &Arc<VcpuControl>,
    commands: mpsc::Receiver<VcpuCommand>,
) -> VcpuStats {
    const START: u64 = 0x10_0000;
    let kvm = machine::open_kvm().unwrap();
    let vm = Machine::new(&kvm, Ram::new(2).unwrap(), 1).unwrap();
    vm.add_interrupt_controllers(Interrupts::LocalOnly).unwrap();
    boot::write_tables(vm.ram(), 1).unwrap();
    vm.ram().write(START, code).unwrap();
    let fd = vm.create_vcpu(VcpuId::BOOT).unwrap();
    fd.set_cpuid2(&Supported::read(&kvm).unwrap().of_vcpu(VcpuId::BOOT)).unwrap();
    boot::set_registers(&fd, VcpuId::BOOT, Entry::Long(START)).unwrap();

    let mut ports = PortBus::new();
    ports.attach(EXIT_PORT, 1, ExitPort).unwrap();
    let shared = Shared {
        ports,
        output: Arc::default(),
        control: Arc::clone(control),
        cpus: cpus(),
        hooks: Arc::new(NoHooks),
    };
    let (sender, messages) = mpsc::channel();
    let event_sender = EventSender::new(sender, EventFd::new(0).unwrap());
    let host_vm = Arc::new(GuestVm::new(vm.ram().clone(), Arc::clone(control)));
    let steal_time = StealTime::with_publisher(Arc::new(calls.clone()), host_vm);
    let attached = steal_time.attach(VcpuId::BOOT).unwrap();
    let stats = Vcpu::new(VcpuId::BOOT, fd, Arc::new(shared), attached, event_sender, commands).run();
    let message = messages.try_recv();
    assert!(matches!(message, Ok(Message::Ended { exit: VcpuExit::Exit(7), .. }) | Err(_)), "{message:?}");
    stats
}

#[test]
fn publisher_is_called_before_each_entry() {
    // in $0x70, %al; in $0x70, %al; mov $7, %al; out %al, $0xf4
    const CODE: [u8; 8] = [0xe4, 0x70, 0xe4, 0x70, 0xb0, 7, 0xe6, 0xf4];
    needs!(kvm);
    let calls = Calls::default();
    let (_commands, inbox) = mpsc::channel();
    let stats = run(&CODE, &calls, &Arc::new(VcpuControl::new()), inbox);
    assert_eq!(stats.exits.port, 3, "the guest ended by its exit port");
    // Each exit but the last is followed by an entry, and the first follows one
    let entries = calls.all().iter().filter(|call| **call == Call::BeforeEntry).count();
    assert_eq!(u64::try_from(entries).unwrap(), stats.exits.port + stats.exits.interrupted);
}

/// Cloud Hypervisor issue 7930 and PR 7931: vCPUs ran before the clock was restored, and the guest
/// hung for four minutes. Here a vCPU that resumes has published its steal before it enters the
/// guest, and enters it at no moment of a pause. (Devices have no thread: they run on a vCPU's exit
/// or on the event loop. The clock's flag is set on the vCPU's thread as well, before it enters.)
#[test]
fn resumed_vcpu_publishes_before_it_enters_the_guest() {
    const PAUSES: usize = 50;
    // 1: in $0x70, %al; jmp 1b
    const CODE: [u8; 4] = [0xe4, 0x70, 0xeb, 0xfc];
    needs!(kvm);
    kick::block().unwrap();
    let (calls, control) = (Calls::default(), Arc::new(VcpuControl::new()));
    let (commands, inbox) = mpsc::channel();
    thread::scope(|scope| {
        let vcpu = scope.spawn(|| run(&CODE, &calls, &control, inbox));
        let entries = || calls.all().iter().filter(|call| **call == Call::BeforeEntry).count();
        for _ in 0..PAUSES {
            let before = entries();
            while entries() < before + 3 {
                assert!(!vcpu.is_finished(), "the vCPU failed");
                thread::sleep(Duration::from_micros(100));
            }
            control.pause().unwrap();
            let during = calls.all().len();
            thread::sleep(Duration::from_micros(500));
            assert_eq!(calls.all().len(), during, "a paused vCPU does nothing");
            control.resume();
            commands.send(VcpuCommand::Resume).unwrap();
        }
        control.finish();
        drop(commands);
        vcpu.join().unwrap();
    });
    let calls = calls.all();
    let after_pause = calls.windows(3).filter(|window| window[0] == Call::Pause);
    let orders: Vec<_> = after_pause.collect();
    assert!(orders.len() >= PAUSES - 1, "{calls:?}");
    for order in orders {
        assert_eq!(order[1], Call::Resume, "{order:?}");
        assert_ne!(order[2], Call::Resume, "{order:?}");
    }
}
