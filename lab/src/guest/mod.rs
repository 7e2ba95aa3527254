//! Guests of the lab: the monitor's guest, with a payload that is given a workload and reports what it measured.

mod config;
mod hooks;
mod report_view;

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use protocol::VcpuId;
use protocol::payload::params::{self, Workload};
use protocol::payload::report::Milestone;
use vmm_sys_util::eventfd::EventFd;

use crate::fault_injection::FaultCounts;
use crate::sched::ScheduledGuest;
use crate::window::Window;
use steal_time::publisher::PublisherKind;
use vmm::guest::{Guest, GuestError, PortEvent, RunOutcome};
use vmm::guest_clock::GuestClock;
use vmm::hooks::{Descheduled, RunHooks};
use vmm::timings::Timings;
use vmm::vcpu::run::VcpuStats;
use vmm::vm::{Paused, Vm};

pub use config::LabConfig;
pub use hooks::GuestScheduler;
use hooks::LabHooks;
pub use report_view::ReportView;

/// A guest of the lab could not be run.
#[derive(Debug, thiserror::Error)]
pub enum LabGuestError {
    /// The monitor could not run it.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// The payload does not know a parameter.
    #[error("{0}")]
    Parameter(String),
    /// Workload options for a payload that does not read them.
    #[error("Options {0:?} are parameters of this project's payload, which this one is not (use --cmdline)")]
    ForeignOptions(String),
    /// No doorbell.
    #[error("Cannot make the doorbell's eventfd (is the limit on open files reached?)")]
    Doorbell(#[source] std::io::Error),
}

impl LabGuestError {
    /// Whether the user asked for something that makes no sense, rather than the host refusing it.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Guest(error) => error.is_usage(),
            Self::Parameter(_) | Self::ForeignOptions(_) => true,
            Self::Doorbell(_) => false,
        }
    }

    /// Whether this host refuses the publisher that was asked for.
    pub fn is_of_the_publisher(&self) -> bool {
        matches!(self, Self::Guest(error) if error.is_of_the_publisher())
    }
}

/// A guest under way.
#[derive(Debug)]
pub struct LabGuest {
    guest: Guest,
    hooks: Arc<LabHooks>,
    workload: Option<Workload>,
    doorbell: Option<Arc<EventFd>>,
}

/// A guest that has run.
#[derive(Debug)]
pub struct LabRun {
    /// What the monitor says of the run.
    pub monitor: RunOutcome,
    /// What the payload was asked to do; `None` for a payload of another project.
    pub workload: Option<Workload>,
    /// The payload's report; `None` for a payload of another project.
    pub report: Option<ReportView>,
    /// What the host counted while the guest's window was open.
    pub window: Option<Window>,
    /// What the lab recorded of each vCPU.
    pub vcpus: Vec<VcpuRun>,
}

/// One vCPU that has run.
#[derive(Clone, Debug)]
pub struct VcpuRun {
    /// The vCPU.
    pub id: VcpuId,
    /// The monitor's statistics.
    pub stats: VcpuStats,
    /// The intervals in which the monitor kept it from running, in order; of very many the last.
    pub descheduled: Vec<Descheduled>,
    /// Doorbell writes after which another vCPU ran in its place.
    pub directed_yields: u64,
    /// Faults injected into its publication.
    pub faults: Option<FaultCounts>,
}

/// Runs a guest to its end. What it sends on COM1 goes to `console`.
///
/// # Errors
/// [`LabGuestError`]; nothing is left behind.
pub fn run(
    config: &LabConfig,
    console: impl Write + Send + 'static,
    timings: Timings,
) -> Result<LabRun, LabGuestError> {
    LabGuest::start(config, console, timings)?.wait()
}

impl LabGuest {
    /// Starts a guest. What it sends on COM1 goes to `console`.
    ///
    /// # Errors
    /// [`LabGuestError`]; nothing is left behind.
    pub fn start(
        config: &LabConfig,
        console: impl Write + Send + 'static,
        timings: Timings,
    ) -> Result<Self, LabGuestError> {
        let prepared = Prepared::new(config)?;
        let hooks = Arc::clone(&prepared.hooks) as Arc<dyn RunHooks>;
        let guest = Guest::start(&prepared.config, hooks, console, timings)?;
        Ok(prepared.with(guest))
    }

    /// Starts a guest whose vCPUs execute nothing until it is resumed.
    ///
    /// # Errors
    /// [`LabGuestError`]; nothing is left behind.
    pub fn start_paused(
        config: &LabConfig,
        console: impl Write + Send + 'static,
        timings: Timings,
    ) -> Result<(Self, Paused), LabGuestError> {
        let prepared = Prepared::new(config)?;
        let hooks = Arc::clone(&prepared.hooks) as Arc<dyn RunHooks>;
        let (guest, paused) = Guest::start_paused(&prepared.config, hooks, console, timings)?;
        Ok((prepared.with(guest), paused))
    }

    /// The machine, which can be paused, inspected, saved and restored.
    pub fn vm(&self) -> &Vm {
        self.guest.vm()
    }

    /// Whether the guest has the user's terminal.
    pub fn has_terminal(&self) -> bool {
        self.guest.has_terminal()
    }

    /// The publisher that writes the records.
    pub fn publisher(&self) -> PublisherKind {
        self.guest.publisher()
    }

    /// The payload's report; `None` for a payload of another project.
    pub fn report(&self) -> Option<&ReportView> {
        self.hooks.report()
    }

    /// The intervals in which `vcpu` was descheduled so far, in order.
    pub fn descheduled(&self, vcpu: VcpuId) -> Vec<Descheduled> {
        self.hooks.descheduled(vcpu)
    }

    /// The faults injected for `vcpu` so far; `None` if none are.
    pub fn fault_counts(&self, vcpu: VcpuId) -> Option<FaultCounts> {
        self.hooks.fault_counts(vcpu)
    }

    /// What a scheduler needs of the guest, once its vCPU threads have attached.
    ///
    /// # Errors
    /// [`LabGuestError`] if the process is out of file descriptors.
    pub fn to_be_scheduled(&self) -> Result<ScheduledGuest, LabGuestError> {
        let bell = self.doorbell.as_ref().map(|bell| bell.try_clone()).transpose();
        Ok(ScheduledGuest {
            handles: self.guest.vcpu_handles(),
            report: self.report().cloned(),
            clock: self.guest.clock(),
            bell: bell.map_err(LabGuestError::Doorbell)?,
            event_sender: self.guest.event_sender()?,
        })
    }

    /// Lets `scheduler` decide which vCPUs run. From now on no vCPU yields to another.
    pub fn attach_scheduler(&self, scheduler: Arc<dyn GuestScheduler>) {
        self.hooks.attach_scheduler(scheduler);
    }

    /// Waits until all vCPUs of the payload are up, for at most `limit`.
    pub fn wait_until_up(&self, limit: Duration) {
        self.wait_for(Milestone::AllUp, limit);
    }

    /// Waits until the payload's window opens, for at most `limit`; returns whether it has. A payload of another project has none.
    pub fn wait_for_window(&self, limit: Duration) -> bool {
        self.wait_for(Milestone::WindowOpens, limit)
    }

    fn wait_for(&self, milestone: Milestone, limit: Duration) -> bool {
        let Some(report) = self.report() else { return false };
        let is_reached = || report.header.milestone.load(Ordering::Acquire) >= milestone as u32;
        let began = Instant::now();
        while !is_reached() && began.elapsed() < limit {
            thread::sleep(Duration::from_millis(1));
        }
        is_reached()
    }

    /// Asks the payload to close its window and to end.
    pub fn close(&self) {
        if let Some(report) = self.report() {
            report.header.close_now.store(1, Ordering::Relaxed);
        }
    }

    /// Waits until the guest ends.
    ///
    /// # Errors
    /// [`LabGuestError`]; nothing is left behind.
    pub fn wait(self) -> Result<LabRun, LabGuestError> {
        let Self { guest, hooks, workload, .. } = self;
        let mut monitor = guest.wait()?;
        let report = hooks.report().cloned();
        if let Some(at) = hooks.all_up() {
            monitor.timings.mark_at("all vCPUs up", at);
        }
        if let Some((_, VcpuStats { clock: Some(clock), .. })) = monitor.vcpus.first()
            && let Some(moment) = report.as_ref().and_then(|report| first_instruction(report, clock))
        {
            monitor.timings.mark_at("first guest instruction", moment);
        }
        let vcpu = |(id, stats): &(VcpuId, VcpuStats)| VcpuRun {
            id: *id,
            stats: stats.clone(),
            descheduled: hooks.descheduled(*id),
            directed_yields: hooks.directed_yields(*id),
            faults: hooks.fault_counts(*id),
        };
        let vcpus = monitor.vcpus.iter().map(vcpu).collect();
        Ok(LabRun { workload, report, window: hooks.window(), vcpus, monitor })
    }
}

/// All that a guest of the lab is started with.
struct Prepared {
    config: vmm::guest::GuestConfig,
    hooks: Arc<LabHooks>,
    workload: Option<Workload>,
    doorbell: Option<Arc<EventFd>>,
}

impl Prepared {
    fn new(config: &LabConfig) -> Result<Self, LabGuestError> {
        let mut guest = config.guest.clone();
        let is_ours = guest.payload.open().map_err(GuestError::from)?.note().is_some();
        let workload = is_ours.then(|| workload(config)).transpose()?;
        match &workload {
            Some(workload) => guest.cmdline = workload.to_string(),
            None if !config.options.is_empty() => {
                return Err(LabGuestError::ForeignOptions(config.options.clone()));
            }
            None => {}
        }
        let doorbell = config.doorbell.then(|| EventFd::new(libc::EFD_NONBLOCK).map(Arc::new)).transpose();
        let doorbell = doorbell.map_err(LabGuestError::Doorbell)?;
        let events = doorbell.iter().map(Arc::clone);
        let port = protocol::payload::machine::DOORBELL_PORT;
        guest.port_events.extend(events.map(|event| PortEvent { port, event }));
        let hooks = Arc::new(LabHooks::new(guest.cpus.clone(), config.faults));
        Ok(Self { config: guest, hooks, workload, doorbell })
    }

    fn with(self, guest: Guest) -> LabGuest {
        LabGuest { guest, hooks: self.hooks, workload: self.workload, doorbell: self.doorbell }
    }
}

/// What the payload is asked to do. Of hints, command line and options the later one wins.
fn workload(config: &LabConfig) -> Result<Workload, LabGuestError> {
    let line = format!("{} {} {}", config.hints, config.guest.cmdline, config.options);
    let parsed = params::parse(&line).map(|(workload, _)| workload);
    parsed.map_err(|error| LabGuestError::Parameter(error.to_string()))
}

fn first_instruction(report: &ReportView, clock: &GuestClock) -> Option<Instant> {
    let tsc = report.vcpus.first()?.first_instruction.load(Ordering::Relaxed);
    if tsc == 0 { None } else { clock.moment(tsc) }
}
