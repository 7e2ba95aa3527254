//! One guest, from its configuration to the outcome of its run.
//!
//! The order of the calls is the order in which things must happen. Signals are blocked before the first thread starts. The BPF
//! program loads while the machine is built. Memslots come before interrupt controllers. The MSR filter is set before the first
//! vCPU runs. Every vCPU thread is joined before anything is taken down.

mod config;
mod error;

use std::fmt;
use std::io::Write;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use devices::{ExitPort, I8042, PortBus, Serial, SerialInput, Unclaimed};
use kvm_ioctls::VcpuFd;
use protocol::payload::machine::{COM1, EXIT_PORT, I8042 as I8042_PORTS, I8042_COMMAND};
use protocol::payload::note::Note;
use protocol::payload::params::Boot;
use protocol::{MAX_VCPUS, VcpuId};
use vmm_sys_util::eventfd::EventFd;

use crate::boot::Entry;
use crate::console::Console;
use crate::event_loop::{self, EventLoop};
use crate::guest_clock::GuestClock;
use crate::hooks::{LoadedGuest, RunHooks};
use crate::loader::Image;
use crate::memory::Ram;
use crate::supervise::{self, Outcome};
use crate::timings::Timings;
use crate::vcpu::control::{VcpuControl, VcpuHandle};
use crate::vcpu::run::VcpuStats;
use crate::vcpu::threads::{Common, Threads};
use crate::vcpu::{EventSender, Shared};
use crate::vm::host_vm::GuestVm;
use crate::vm::machine::{self, Interrupts, Machine};
use crate::vm::{Paused, Vm};
use host::kick;
use steal_time::filter::filter_msr;
use steal_time::host_vm::HostVm;
use steal_time::publisher::{PublisherChoice, PublisherKind, Selection};
use steal_time::vm::StealTime;

pub use config::{GuestConfig, PayloadSource, PortEvent};
pub use error::GuestError;

/// How long vCPU threads may take to attach to the control.
const ATTACH_LIMIT: Duration = Duration::from_secs(5);

/// The outcome of a run.
#[derive(Debug)]
pub struct RunOutcome {
    /// How it ended.
    pub outcome: Outcome,
    /// How its vCPUs began.
    pub entry: Entry,
    /// The publisher that wrote the records.
    pub publisher: PublisherKind,
    /// Why this publisher was chosen.
    pub publisher_why: String,
    /// What the publisher cannot see or do on this host.
    pub publisher_limits: Vec<String>,
    /// The statistics of each vCPU.
    pub vcpus: Vec<(VcpuId, VcpuStats)>,
    /// Accesses to ports that no device claims (bytes).
    pub unclaimed: Unclaimed,
    /// Where the time went.
    pub timings: Timings,
}

impl fmt::Display for RunOutcome {
    /// One line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { outcome, publisher, publisher_why: why, vcpus, .. } = self;
        let count = vcpus.len();
        let plural = if count == 1 { "" } else { "s" };
        write!(f, "{count} vCPU{plural}, publisher {publisher} ({why}): {outcome}")
    }
}

/// A guest under way.
pub struct Guest {
    /// Dropped first: its threads use everything else.
    vm: Vm,
    event_loop: EventLoop,
    shared: Arc<Shared>,
    hooks: Arc<dyn RunHooks>,
    entry: Entry,
    note: Option<Note>,
    selection: Selection,
    has_terminal: bool,
    clock: Option<GuestClock>,
    timings: Timings,
}

impl Guest {
    /// Starts a guest. What it sends on COM1 goes to `console`.
    ///
    /// # Errors
    /// [`GuestError`]; nothing is left behind.
    pub fn start(
        config: &GuestConfig,
        hooks: Arc<dyn RunHooks>,
        console: impl Write + Send + 'static,
        timings: Timings,
    ) -> Result<Self, GuestError> {
        Self::start_at(VcpuControl::new(), config, hooks, console, timings)
    }

    /// Starts a guest whose vCPUs execute nothing until [`Vm::resume`].
    ///
    /// # Errors
    /// [`GuestError`]; nothing is left behind.
    pub fn start_paused(
        config: &GuestConfig,
        hooks: Arc<dyn RunHooks>,
        console: impl Write + Send + 'static,
        timings: Timings,
    ) -> Result<(Self, Paused), GuestError> {
        let guest = Self::start_at(VcpuControl::paused(), config, hooks, console, timings)?;
        Ok((guest, Paused::from_the_start()))
    }

    fn start_at(
        control: VcpuControl,
        config: &GuestConfig,
        hooks: Arc<dyn RunHooks>,
        console: impl Write + Send + 'static,
        mut timings: Timings,
    ) -> Result<Self, GuestError> {
        timings.mark("arguments read");
        if !(1..=MAX_VCPUS).contains(&config.vcpus) {
            return Err(GuestError::VcpuCount(config.vcpus));
        }
        event_loop::block_signals()?;
        kick::block().map_err(GuestError::Kick)?;
        let loading = config.publisher.begin_loading(config.vcpus);
        let built = build(config, &mut timings);
        let loaded = loading.finish();
        timings.mark_at("publisher loaded", loaded.at());
        let Built { machine, boot_vcpu, entry, note } = built?;
        for PortEvent { port, event } in &config.port_events {
            machine.add_port_event(*port, event)?;
        }
        let clock = GuestClock::read(&boot_vcpu);
        let selection = loaded.settle(machine.supported().has_steal_time())?;

        let control = Arc::new(control);
        hooks.on_loaded(&LoadedGuest { ram: machine.ram(), note: note.as_ref(), control: &control });
        let (ports, line) = port_bus(&machine, console)?;
        // A payload of this project does not read its console.
        let reads_console = config.stdin && note.is_none();
        let console = reads_console.then(|| Console::new(line.input, line.room)).transpose();
        let console = console.map_err(GuestError::Console)?;
        let has_terminal = console.as_ref().is_some_and(Console::has_terminal);
        let event_loop = EventLoop::new(config.timeout, console)?;
        let vm: Arc<dyn HostVm> = Arc::new(GuestVm::new(machine.ram().clone(), Arc::clone(&control)));
        let publisher = hooks.publisher(&selection, Arc::clone(&vm), &config.cpus)?;
        let steal_time = StealTime::with_publisher(publisher, vm);
        let shared = Arc::new(Shared {
            ports,
            control: Arc::clone(&control),
            cpus: config.cpus.clone(),
            hooks: Arc::clone(&hooks),
        });
        let common = Common {
            entry,
            supported: machine.supported().clone(),
            shared: Arc::clone(&shared),
            steal_time: steal_time.clone(),
        };
        // All vCPUs are created before the first one runs: an INIT or SIPI to a vCPU that does not exist yet is lost.
        let mut vcpus = vec![(VcpuId::BOOT, boot_vcpu)];
        for vcpu in VcpuId::first(config.vcpus).skip(1) {
            vcpus.push((vcpu, machine.create_vcpu(vcpu)?));
        }
        let mut threads = Threads::new(Arc::clone(&control));
        for (vcpu, fd) in vcpus {
            let started = threads.start(vcpu, fd, common.clone(), event_loop.event_sender()?);
            started.map_err(|source| GuestError::Thread { vcpu, source })?;
        }
        timings.mark("vCPU threads started");
        let vm = Vm::new(machine, control, steal_time, threads);
        Ok(Self { vm, event_loop, shared, hooks, entry, note, selection, has_terminal, clock, timings })
    }

    /// Returns the machine, which can be paused, inspected, saved and restored.
    pub fn vm(&self) -> &Vm {
        &self.vm
    }

    /// Returns the note of a payload of this project; `None` for any other payload.
    pub fn note(&self) -> Option<&Note> {
        self.note.as_ref()
    }

    /// Returns whether the guest has the user's terminal. Then the escape key ends the run, and Ctrl-C does not.
    pub fn has_terminal(&self) -> bool {
        self.has_terminal
    }

    /// Returns the guest's clock; `None` if KVM does not report the TSC.
    pub fn clock(&self) -> Option<GuestClock> {
        self.clock
    }

    /// Waits until the vCPU threads have attached, for at most 5 s. Returns their handles in vCPU order.
    pub fn vcpu_handles(&self) -> Vec<Arc<VcpuHandle>> {
        let handles = || self.shared.control.handles();
        // A thread that cannot prepare its vCPU does not attach; its failure is on its way to the event loop.
        let began = Instant::now();
        while handles().len() < self.vm.vcpu_count() && began.elapsed() < ATTACH_LIMIT {
            thread::sleep(Duration::from_micros(100));
        }
        let mut handles = handles();
        handles.sort_by_key(|(vcpu, _)| *vcpu);
        handles.into_iter().map(|(_, handle)| handle).collect()
    }

    /// Returns a sender of messages to the thread that waits for the guest.
    ///
    /// # Errors
    /// [`GuestError`] if the process is out of file descriptors.
    pub fn event_sender(&self) -> Result<EventSender, GuestError> {
        Ok(self.event_loop.event_sender()?)
    }

    /// Returns the publisher that writes the records.
    pub fn publisher(&self) -> PublisherKind {
        self.selection.kind()
    }

    /// Waits until the guest ends.
    ///
    /// # Errors
    /// [`GuestError`]; nothing is left behind.
    pub fn wait(mut self) -> Result<RunOutcome, GuestError> {
        let outcome = supervise::supervise(&mut self.event_loop, &*self.hooks);
        self.timings.mark("guest ended");
        self.hooks.on_guest_end();
        let vcpus = self.vm.finish();
        let publisher_limits = self.vm.publisher().limits();
        self.timings.mark("vCPU threads joined");
        Ok(RunOutcome {
            outcome: outcome?,
            entry: self.entry,
            publisher: self.selection.kind(),
            publisher_why: self.selection.why().to_owned(),
            publisher_limits,
            vcpus,
            unclaimed: self.shared.ports.unclaimed(),
            timings: self.timings,
        })
    }
}

impl fmt::Debug for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guest").field("vm", &self.vm).finish_non_exhaustive()
    }
}

/// A machine with its payload loaded.
struct Built {
    machine: Machine,
    boot_vcpu: VcpuFd,
    entry: Entry,
    note: Option<Note>,
}

fn build(config: &GuestConfig, timings: &mut Timings) -> Result<Built, GuestError> {
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
    Ok(Built { machine, boot_vcpu, entry, note })
}

/// The monitor's end of COM1.
struct Line {
    input: SerialInput,
    room: EventFd,
}

fn port_bus(machine: &Machine, console: impl Write + Send + 'static) -> Result<(PortBus, Line), GuestError> {
    let room = EventFd::new(libc::EFD_NONBLOCK).map_err(GuestError::Console)?;
    let copy = room.try_clone().map_err(GuestError::Console)?;
    let (serial, input) = Serial::new(machine.com1_line()?, copy, console);
    let mut ports = PortBus::new();
    ports.attach(COM1, 8, serial)?;
    ports.attach(I8042_PORTS, I8042_COMMAND - I8042_PORTS + 1, I8042::new())?;
    ports.attach(EXIT_PORT, 1, ExitPort)?;
    Ok((ports, Line { input, room }))
}
