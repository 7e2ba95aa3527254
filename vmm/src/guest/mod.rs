//! One guest, from its configuration to what is left of it.
//!
//! The order of the calls is the order in which things must happen: signals are blocked before the first thread
//! starts; the BPF program loads beside the machine; memslots come before interrupt controllers; the MSR filter is
//! set before the first vCPU runs; every vCPU thread is home before anything is taken down.

mod config;
mod error;

use std::io::Write;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use devices::{Doorbell, ExitPort, I8042, MilestonePort, PortBus, Serial, SerialInput, Unclaimed};
use kvm_ioctls::VcpuFd;
use protocol::machine::{
    COM1, DOORBELL_PORT, EXIT_PORT, I8042 as I8042_PORTS, I8042_COMMAND, MILESTONE_PORT,
};
use protocol::report::Milestone;
use protocol::words::{self, Boot, Workload};
use protocol::{MAX_VCPUS, VcpuId};
use vmm_sys_util::eventfd::EventFd;

use crate::boot::Entry;
use crate::console::Console;
use crate::event_loop::{self, EventLoop};
use crate::gate::Gate;
use crate::kick;
use crate::loader::{Image, Payload};
use crate::measure::Window;
use crate::memory::{Ram, ReportView};
use crate::payload;
use crate::progress::{Outcome, Progress};
use crate::publisher::{Choice, PublisherKind, Selection};
use crate::steal_time::msr;
use crate::steer::Steered;
use crate::timings::{GuestClock, Timings};
use crate::vcpu::OnKick;
use crate::vcpu::Shared;
use crate::vcpu::offer::Offers;
use crate::vcpu::run::{Remains, guest_clock};
use crate::vcpu::threads::{Common, Threads};
use crate::vm::machine::{self, Interrupts, Machine};
use crate::vm::{Paused, Vm};

pub use config::{GuestConfig, PayloadSource};
pub use error::GuestError;

/// What vCPU threads may take to take their seats.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is left of a guest that has run.
#[derive(Debug)]
pub struct GuestRun {
    /// How it ended.
    pub outcome: Outcome,
    /// How its vCPUs began.
    pub entry: Entry,
    /// What our payload was asked to do; `None` for a foreign one.
    pub workload: Option<Workload>,
    /// Our payload's report; `None` for a foreign one.
    pub report: Option<ReportView>,
    /// Who published.
    pub publisher: PublisherKind,
    /// Why that one.
    pub publisher_why: String,
    /// What it cannot see or do here.
    pub publisher_limits: Vec<String>,
    /// What the host counted while the guest's window was open.
    pub window: Option<Window>,
    /// What is left of each vCPU.
    pub vcpus: Vec<(VcpuId, Remains)>,
    /// Bytes of port space that nobody answered for.
    pub unclaimed: Unclaimed,
    /// Where the time went.
    pub timings: Timings,
}

/// Runs a guest to its end. What it sends on COM1 goes to `console`.
///
/// # Errors
/// [`GuestError`]; nothing is left behind.
pub fn run(
    config: &GuestConfig,
    console: impl Write + Send + 'static,
    timings: Timings,
) -> Result<GuestRun, GuestError> {
    Guest::start(config, console, timings)?.wait()
}

/// Whoever chooses which vCPUs of a guest run, as the one who waits for its end sees him.
pub trait Helm {
    /// The guest is to end before its time: all its vCPUs may run.
    fn let_go(&self);

    /// It has ended. Its vCPU threads are about to go home.
    fn guest_ended(&self);
}

/// Nobody does.
#[derive(Debug)]
struct Unsteered;

impl Helm for Unsteered {
    fn let_go(&self) {}

    fn guest_ended(&self) {}
}

/// A guest under way.
pub struct Guest {
    /// It ends first: its threads use all else.
    vm: Vm,
    event_loop: EventLoop,
    shared: Arc<Shared>,
    entry: Entry,
    workload: Option<Workload>,
    report: Option<ReportView>,
    selection: Selection,
    has_terminal: bool,
    /// Its clock, where KVM tells it.
    clock: Option<GuestClock>,
    bell: Option<EventFd>,
    timings: Timings,
}

impl Guest {
    /// Starts a guest. What it sends on COM1 goes to `console`.
    ///
    /// # Errors
    /// [`GuestError`]; nothing is left behind.
    pub fn start(
        config: &GuestConfig,
        console: impl Write + Send + 'static,
        timings: Timings,
    ) -> Result<Self, GuestError> {
        Self::start_at(Gate::new(), config, console, timings)
    }

    /// Makes a guest whose vCPUs have not executed any instruction yet: it stands still until it is resumed.
    ///
    /// # Errors
    /// [`GuestError`]; nothing is left behind.
    pub fn start_paused(
        config: &GuestConfig,
        console: impl Write + Send + 'static,
        timings: Timings,
    ) -> Result<(Self, Paused), GuestError> {
        let guest = Self::start_at(Gate::paused(), config, console, timings)?;
        Ok((guest, Paused::from_the_start()))
    }

    fn start_at(
        gate: Gate,
        config: &GuestConfig,
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
        let Built { machine, boot_vcpu, entry, workload, report } = built?;
        let bell = config.bell.then(|| machine.add_doorbell()).transpose()?;
        let clock = guest_clock(&boot_vcpu);
        let selection = loaded.settle(machine.supported().has_steal_time())?;
        let owner = selection.kind().msr_owner();

        let gate = Arc::new(gate);
        let (ports, line) = port_bus(&machine, console)?;
        let is_foreign = workload.is_none();
        let console = (config.stdin && is_foreign).then(|| Console::new(line.input, line.room)).transpose();
        let console = console.map_err(GuestError::Console)?;
        let has_terminal = console.as_ref().is_some_and(Console::has_terminal);
        let event_loop = EventLoop::new(config.timeout, console)?;
        let shared = Arc::new(Shared {
            ports,
            gate: Arc::clone(&gate),
            cpus: config.cpus.clone(),
            ram: machine.ram().clone(),
            offers: Offers::default(),
            on_kick: OnceLock::new(),
        });
        let publisher =
            selection.publisher((machine.ram().clone(), Arc::clone(&gate), &config.cpus), config.faults)?;
        let common = Common {
            entry,
            owner,
            supported: machine.supported().clone(),
            shared: Arc::clone(&shared),
            publisher: Arc::clone(&publisher),
        };
        // All are made before the first one runs: an INIT or SIPI to a vCPU that does not exist yet is lost.
        let mut vcpus = vec![(VcpuId::BOOT, boot_vcpu)];
        for vcpu in VcpuId::first(config.vcpus).skip(1) {
            vcpus.push((vcpu, machine.create_vcpu(vcpu)?));
        }
        let mut threads = Threads::new(Arc::clone(&gate));
        for (vcpu, fd) in vcpus {
            let started = threads.start(vcpu, fd, common.clone(), event_loop.outbox()?);
            started.map_err(|source| GuestError::Thread { vcpu, source })?;
        }
        timings.mark("vCPU threads started");
        let vm = Vm::new(machine, gate, publisher, threads);
        Ok(Self {
            vm,
            event_loop,
            shared,
            entry,
            workload,
            report,
            selection,
            has_terminal,
            clock,
            bell,
            timings,
        })
    }

    /// The machine, to be paused, looked at, saved and restored.
    pub fn vm(&self) -> &Vm {
        &self.vm
    }

    /// Whether it has the user's terminal to itself: then the escape key ends it, and Ctrl-C does not.
    pub fn has_terminal(&self) -> bool {
        self.has_terminal
    }

    /// What it takes to steer it, once its vCPU threads have taken their seats.
    ///
    /// # Errors
    /// [`GuestError`], out of file descriptors most likely.
    pub fn to_be_steered(&self) -> Result<Steered, GuestError> {
        let seats = || self.shared.gate.seats();
        // A thread that cannot prepare its vCPU takes no seat, and its failure is on its way.
        let began = Instant::now();
        while seats().len() < self.vm.vcpu_count() && began.elapsed() < PATIENCE {
            thread::sleep(Duration::from_micros(100));
        }
        let mut seats = seats();
        seats.sort_by_key(|(vcpu, _)| *vcpu);
        let bell = self.bell.as_ref().map(EventFd::try_clone).transpose().map_err(GuestError::Bell)?;
        Ok(Steered {
            seats: seats.into_iter().map(|(_, seat)| seat).collect(),
            report: self.report.clone(),
            clock: self.clock,
            bell,
            outbox: self.event_loop.outbox()?,
        })
    }

    /// Has somebody told when its vCPU threads are kicked, once and for all. Nobody offers a CPU to another any more.
    pub fn steer(&self, on_kick: Option<Arc<dyn OnKick>>) {
        self.shared.offers.end();
        if let Some(on_kick) = on_kick {
            // The first one stays.
            let _ = self.shared.on_kick.set(on_kick);
        }
    }

    /// Who publishes.
    pub fn publisher(&self) -> PublisherKind {
        self.selection.kind()
    }

    /// Waits until all vCPUs of our payload are up, for at most `patience`.
    pub fn wait_until_up(&self, patience: Duration) {
        self.wait_for(Milestone::AllUp, patience);
    }

    /// Our payload's report; `None` for a foreign one.
    pub fn report(&self) -> Option<&ReportView> {
        self.report.as_ref()
    }

    /// Waits until our payload's window opens, for at most `patience`; says whether it has. It never does for others.
    pub fn wait_for_window(&self, patience: Duration) -> bool {
        self.wait_for(Milestone::WindowOpens, patience)
    }

    fn wait_for(&self, milestone: Milestone, patience: Duration) -> bool {
        let Some(report) = &self.report else { return false };
        let is_reached = || report.header.milestone.load(Ordering::Acquire) >= milestone as u32;
        let began = Instant::now();
        while !is_reached() && began.elapsed() < patience {
            thread::sleep(Duration::from_millis(1));
        }
        is_reached()
    }

    /// Waits until it ends.
    ///
    /// # Errors
    /// [`GuestError`]; nothing is left behind.
    pub fn wait(self) -> Result<GuestRun, GuestError> {
        self.wait_under(&Unsteered)
    }

    /// As [`Guest::wait`], with somebody who chooses which vCPUs run.
    ///
    /// # Errors
    /// [`GuestError`]; nothing is left behind.
    pub fn wait_under(mut self, steering: &dyn Helm) -> Result<GuestRun, GuestError> {
        let mut progress = Progress::new(self.timings);
        let outcome = progress.watch(&mut self.event_loop, self.report.as_ref(), &|| steering.let_go());
        progress.timings.mark("guest ended");
        steering.guest_ended();
        let vcpus = self.vm.finish();
        let publisher_limits = self.vm.publisher().limits();
        progress.timings.mark("vCPU threads home");
        let outcome = outcome?;
        let (window, mut timings) = progress.finish(self.event_loop);
        if let Some((_, Remains { clock: Some(clock), .. })) = vcpus.first()
            && let Some(moment) = self.report.as_ref().and_then(|report| first_instruction(report, clock))
        {
            timings.mark_at("first guest instruction", moment);
        }
        Ok(GuestRun {
            outcome,
            entry: self.entry,
            workload: self.workload,
            report: self.report,
            publisher: self.selection.kind(),
            publisher_why: self.selection.why().to_owned(),
            publisher_limits,
            window,
            vcpus,
            unclaimed: self.shared.ports.unclaimed(),
            timings,
        })
    }
}

fn kernel_is_asked_for(config: &GuestConfig) -> bool {
    config.publisher == Choice::Only(PublisherKind::Kernel)
}

/// A machine with its payload loaded.
struct Built {
    machine: Machine,
    boot_vcpu: VcpuFd,
    entry: Entry,
    workload: Option<Workload>,
    report: Option<ReportView>,
}

fn build(config: &GuestConfig, timings: &mut Timings) -> Result<Built, GuestError> {
    let kvm = machine::open_kvm()?;
    let payload = match &config.payload {
        PayloadSource::Embedded => Payload::parse(Image::embedded("(embedded)", payload::BYTES), false)?,
        PayloadSource::File { path, flat } => Payload::parse(Image::open("payload", path)?, *flat)?,
    };
    let entry = payload.entry(config.start);
    let initrd = config.initrd.as_deref().map(|path| Image::open("initrd", path)).transpose()?;
    let ram = Ram::new(config.memory_mib)?;
    let interrupts = match entry {
        Entry::Direct(_) => Interrupts::LocalOnly,
        Entry::Pvh(_) | Entry::Long(_) => Interrupts::Full,
    };
    let machine = Machine::new(&kvm, ram, config.vcpus)?;
    if !kernel_is_asked_for(config) {
        msr::filter(machine.fd())?;
    }
    machine.add_interrupt_controllers(interrupts)?;
    let boot_vcpu = machine.create_vcpu(VcpuId::BOOT)?;
    timings.mark("machine made");

    let (cmdline, workload) = match payload.note() {
        Some(_) => {
            let workload = workload(config)?;
            let tsc_khz = boot_vcpu.get_tsc_khz().ok().filter(|khz| *khz > 0);
            let boot = Boot { vcpus: u16::try_from(config.vcpus).ok(), tsc_khz, start: config.start };
            (format!("{workload} {boot}"), Some(workload))
        }
        None if !config.options.is_empty() => return Err(GuestError::ForeignOptions(config.options.clone())),
        None => (config.cmdline.clone(), None),
    };
    payload.load(machine.ram(), config.vcpus, &cmdline, initrd.as_ref())?;
    let report = payload.note().and_then(|note| machine.ram().report(note.report));
    if let Some(report) = &report {
        report.header.has_reader.store(1, Ordering::Relaxed);
    }
    timings.mark("payload loaded");
    Ok(Built { machine, boot_vcpu, entry, workload, report })
}

/// What our payload is asked to do: what is to be told, its command line, the typed options. What comes later counts more.
fn workload(config: &GuestConfig) -> Result<Workload, GuestError> {
    let line = format!("{} {} {}", config.tells, config.cmdline, config.options);
    words::parse(&line).map(|(workload, _)| workload).map_err(|error| GuestError::Word(error.to_string()))
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
    ports.attach(MILESTONE_PORT, 1, MilestonePort)?;
    ports.attach(DOORBELL_PORT, 1, Doorbell)?;
    Ok((ports, Line { input, room }))
}

fn first_instruction(report: &ReportView, clock: &GuestClock) -> Option<Instant> {
    let tsc = report.vcpus.first()?.first_instruction.load(Ordering::Relaxed);
    if tsc == 0 { None } else { clock.moment(tsc) }
}
