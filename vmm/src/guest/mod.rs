//! One guest, from its configuration to the outcome of its run.
//!
//! The order of the calls matters:
//!
//! - Signals are blocked before the first thread starts.
//! - The BPF program loads on a thread of its own while the machine is built.
//! - Memslots come before interrupt controllers (see [`crate::vm::machine`]).
//! - The MSR filter is set before the first vCPU runs.
//! - All vCPUs are created before the first one runs.
//! - All vCPU threads are joined before anything is dropped.

mod build;
mod config;

use std::fmt;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::Unclaimed;
use host::{kick, termination};
use protocol::payload::note::Note;
use protocol::{MAX_VCPUS, VcpuId};
use steal_time::StealTime;
use steal_time::host_vm::HostVm;
use steal_time::publisher::{PublisherKind, Selection};

use crate::blocked_signals::BlockedSignals;
use crate::boot::Entry;
use crate::console::output::ConsoleOutput;
use crate::console::{ConsoleInput, ConsoleLoss, OutputBuffer};
use crate::error::VmmError;
use crate::event_loop::EventLoop;
use crate::guest_clock::GuestClock;
use crate::hooks::{LoadedGuest, RunHooks};
use crate::supervise::{self, Outcome};
use crate::timings::Timings;
use crate::vcpu::control::{VcpuControl, VcpuHandle};
use crate::vcpu::run::VcpuStats;
use crate::vcpu::threads::{Common, Threads};
use crate::vcpu::{EventSender, Shared};
use crate::vm::host_vm::GuestVm;
use crate::vm::{Paused, Vm};
use build::Built;

pub use config::{GuestConfig, PayloadSource, PortEvent};

/// How long [`Guest::vcpu_handles`] waits for vCPU threads to attach.
const ATTACH_LIMIT: Duration = Duration::from_secs(5);

/// Time between two looks of [`Guest::wait_until`].
const POLL: Duration = Duration::from_micros(500);

/// The outcome of a run.
#[derive(Debug)]
pub struct RunOutcome {
    /// How it ended.
    pub outcome: Outcome,
    /// How its vCPUs started.
    pub entry: Entry,
    /// The publisher that wrote the records.
    pub publisher: PublisherKind,
    /// Why this publisher was chosen.
    pub publisher_why: String,
    /// What the publisher cannot see or do on this host.
    pub publisher_limits: Vec<String>,
    /// The statistics of each vCPU.
    pub vcpus: Vec<(VcpuId, VcpuStats)>,
    /// Accesses to ports without a device (bytes).
    pub unclaimed: Unclaimed,
    /// What the guest sent on COM1 and the console did not take.
    pub console_loss: ConsoleLoss,
    /// When the run reached its milestones.
    pub timings: Timings,
}

impl fmt::Display for RunOutcome {
    /// Formats the summary, one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { outcome, publisher, publisher_why: why, vcpus, .. } = self;
        let count = vcpus.len();
        let plural = if count == 1 { "" } else { "s" };
        write!(f, "{count} vCPU{plural}, publisher {publisher} ({why}): {outcome}")
    }
}

/// A guest whose vCPU threads run.
pub struct Guest {
    /// Dropped first: the vCPU threads use everything else.
    vm: Vm,
    event_loop: EventLoop,
    shared: Arc<Shared>,
    hooks: Arc<dyn RunHooks>,
    entry: Entry,
    note: Option<Note>,
    selection: Selection,
    has_terminal: bool,
    console: ConsoleOutput,
    clock: Option<GuestClock>,
    timings: Timings,
    /// Dropped last: a signal that comes now is the program's.
    _signals: Option<BlockedSignals>,
}

impl Guest {
    /// Starts a guest. Its output on COM1 goes to `console`, and `timings` records the milestones.
    ///
    /// # Errors
    /// [`VmmError`]; no thread and no mapping is left then.
    pub fn start(
        config: &GuestConfig,
        hooks: Arc<dyn RunHooks>,
        console: impl Write + Send + 'static,
        timings: Timings,
    ) -> Result<Self, VmmError> {
        Self::start_at(VcpuControl::new(), config, hooks, console, timings)
    }

    /// Starts a guest whose vCPUs execute nothing until [`Vm::resume`].
    ///
    /// # Errors
    /// [`VmmError`]; no thread and no mapping is left then.
    pub fn start_paused(
        config: &GuestConfig,
        hooks: Arc<dyn RunHooks>,
        console: impl Write + Send + 'static,
        timings: Timings,
    ) -> Result<(Self, Paused), VmmError> {
        let guest = Self::start_at(VcpuControl::paused(), config, hooks, console, timings)?;
        Ok((guest, Paused::from_the_start()))
    }

    fn start_at(
        control: VcpuControl,
        config: &GuestConfig,
        hooks: Arc<dyn RunHooks>,
        console: impl Write + Send + 'static,
        mut timings: Timings,
    ) -> Result<Self, VmmError> {
        timings.mark("arguments read");
        if !(1..=MAX_VCPUS).contains(&config.vcpus) {
            return Err(VmmError::Usage(format!(
                "A guest has 1 to {MAX_VCPUS} vCPUs, and {} were asked for (see --vcpus)",
                config.vcpus
            )));
        }
        let signals = BlockedSignals::new()?;
        kick::block().map_err(VmmError::cannot("block the kick signal"))?;
        let loading = config.publisher.begin_loading(config.vcpus);
        let built = Built::new(config, &mut timings);
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
        let output = Arc::new(OutputBuffer::default());
        let (ports, line) = build::port_bus(&machine, &output)?;
        // A payload of this project does not read its console.
        let reads_console = config.stdin && note.is_none();
        let input = reads_console.then(|| ConsoleInput::new(line.input, line.room)).transpose();
        let input = input.map_err(VmmError::cannot("connect standard input to COM1 (try </dev/null)"))?;
        let has_terminal = input.as_ref().is_some_and(ConsoleInput::has_terminal);
        let event_loop = EventLoop::new(config.timeout, input)?;
        let vm: Arc<dyn HostVm> = Arc::new(GuestVm::new(machine.ram().clone(), Arc::clone(&control)));
        let publisher = hooks.publisher(&selection, Arc::clone(&vm), &config.cpus)?;
        let steal_time = StealTime::with_publisher(publisher, vm);
        let shared = Arc::new(Shared {
            ports,
            output: Arc::clone(&output),
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
        // An INIT or SIPI to a vCPU that does not exist yet would be lost.
        let mut vcpus = vec![(VcpuId::BOOT, boot_vcpu)];
        for vcpu in VcpuId::first(config.vcpus).skip(1) {
            vcpus.push((vcpu, machine.create_vcpu(vcpu)?));
        }
        let mut threads = Threads::new(Arc::clone(&control));
        for (vcpu, fd) in vcpus {
            threads.start(vcpu, fd, common.clone(), event_loop.event_sender()?)?;
        }
        timings.mark("vCPU threads started");
        // Afterwards: it does not delay the first guest instruction.
        let console = ConsoleOutput::start(output, console);
        let console = console.map_err(VmmError::cannot("start the thread of the console"))?;
        let vm = Vm::new(machine, control, steal_time, threads);
        Ok(Self {
            vm,
            event_loop,
            shared,
            hooks,
            entry,
            note,
            selection,
            has_terminal,
            console,
            clock,
            timings,
            _signals: signals,
        })
    }

    /// Returns the virtual machine, which can be paused, saved and restored.
    pub fn vm(&self) -> &Vm {
        &self.vm
    }

    /// Returns the note of a payload of this project; `None` for any other payload.
    pub fn note(&self) -> Option<&Note> {
        self.note.as_ref()
    }

    /// Returns whether COM1 is connected to a terminal. Then Ctrl-C goes to the guest, and the
    /// escape key Ctrl-A x ends the run.
    pub fn has_terminal(&self) -> bool {
        self.has_terminal
    }

    /// Returns the guest's clock; `None` if KVM does not report the TSC.
    pub fn clock(&self) -> Option<GuestClock> {
        self.clock
    }

    /// Waits until `condition` holds, for at most `limit`, and returns whether it does. The wait also
    /// ends when a vCPU thread has ended, and when termination is requested.
    pub fn wait_until(&self, condition: impl Fn() -> bool, limit: Duration) -> bool {
        let began = Instant::now();
        loop {
            // The thread may have made it hold before it ended.
            let is_last = self.vm.has_ended() || began.elapsed() >= limit;
            if condition() {
                return true;
            }
            if is_last || termination::wait(POLL).is_some() {
                return condition();
            }
        }
    }

    /// Waits until the vCPU threads have attached, for at most 5 s. Returns the handles of those
    /// that have, in vCPU order.
    pub fn vcpu_handles(&self) -> Vec<Arc<VcpuHandle>> {
        let handles = || self.shared.control.handles();
        // A thread that cannot prepare its vCPU never attaches. It sends its error to the event
        // loop.
        self.wait_until(|| handles().len() >= self.vm.vcpu_count(), ATTACH_LIMIT);
        let mut handles = handles();
        handles.sort_by_key(|(vcpu, _)| *vcpu);
        handles.into_iter().map(|(_, handle)| handle).collect()
    }

    /// Returns a sender of messages to the thread that calls [`wait`](Self::wait).
    ///
    /// # Errors
    /// [`VmmError::Host`] if the process is out of file descriptors.
    pub fn event_sender(&self) -> Result<EventSender, VmmError> {
        self.event_loop.event_sender()
    }

    /// Returns the publisher that writes the records.
    pub fn publisher(&self) -> PublisherKind {
        self.selection.kind()
    }

    /// Waits until the guest ends, and joins its threads.
    ///
    /// # Errors
    /// [`VmmError`] if a vCPU thread or the event loop failed.
    pub fn wait(mut self) -> Result<RunOutcome, VmmError> {
        let outcome = supervise::supervise(&mut self.event_loop, &*self.hooks);
        self.timings.mark("guest ended");
        self.hooks.on_guest_end();
        let vcpus = self.vm.finish();
        let publisher_limits = self.vm.publisher().limits();
        self.timings.mark("vCPU threads joined");
        let console_loss = self.console.finish();
        Ok(RunOutcome {
            outcome: outcome?,
            entry: self.entry,
            publisher: self.selection.kind(),
            publisher_why: self.selection.why().to_owned(),
            publisher_limits,
            vcpus,
            unclaimed: self.shared.ports.unclaimed(),
            console_loss,
            timings: self.timings,
        })
    }
}

impl fmt::Debug for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guest").field("vm", &self.vm).finish_non_exhaustive()
    }
}
