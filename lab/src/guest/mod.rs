//! Guests of the lab: a guest of the monitor whose payload runs a workload and reports its results.
//!
//! [`LabGuest::start`] is the one way to start a guest, and [`run`] the short form for a guest that
//! runs to its end. [`crate::session`] runs several guests, under a policy and beside a load.

mod config;
mod error;
mod hooks;
mod intervals;
mod report_view;

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use protocol::VcpuId;
use protocol::payload::params::{self, Wait, Workload};
use protocol::payload::report::Milestone;
use vmm_sys_util::eventfd::EventFd;

use crate::error::Error;
use crate::fault_injection::FaultCounts;
use crate::sched::ScheduledGuest;
use crate::window::{OwnWindow, Window};
use host::termination;
use steal_time::publisher::PublisherKind;
use vmm::guest::{Guest, PayloadSource, PortEvent, RunOutcome};
use vmm::guest_clock::GuestClock;
use vmm::hooks::{Descheduled, RunHooks};
use vmm::timings::Timings;
use vmm::vcpu::run::VcpuStats;
use vmm::vm::{Paused, Vm};

pub use config::LabConfig;
pub use error::RunError;
pub use hooks::GuestScheduler;
use hooks::LabHooks;
pub use report_view::ReportView;

/// A running guest.
#[derive(Debug)]
pub struct LabGuest {
    guest: Guest,
    hooks: Arc<LabHooks>,
    workload: Option<Workload>,
    doorbell: Option<Arc<EventFd>>,
}

/// A guest that ended.
#[derive(Debug)]
pub struct LabRun {
    /// The monitor's outcome of the run.
    pub monitor: RunOutcome,
    /// The payload's workload; `None` for a payload of another project.
    pub workload: Option<Workload>,
    /// The payload's report; `None` for a payload of another project.
    pub report: Option<ReportView>,
    /// What the host counted while the guest's window was open.
    pub window: Option<Window>,
    /// What the lab recorded of each vCPU.
    pub vcpus: Vec<VcpuRun>,
}

/// A vCPU of a guest that ended.
#[derive(Clone, Debug)]
pub struct VcpuRun {
    /// The vCPU.
    pub id: VcpuId,
    /// The monitor's statistics.
    pub stats: VcpuStats,
    /// Its own window; `None` if it did not find the window open, and then closed.
    pub window: Option<OwnWindow>,
    /// The last intervals for which the monitor descheduled it, in order.
    pub descheduled: Vec<Descheduled>,
    /// Number of its doorbell writes after which another vCPU ran in its place.
    pub directed_yields: u64,
    /// Faults injected into its publication; `None` without fault injection.
    pub faults: Option<FaultCounts>,
}

/// Runs a guest to its end. Its COM1 output goes to `console`.
///
/// # Errors
/// [`RunError`]; all resources are released.
pub fn run(
    config: &LabConfig,
    console: impl Write + Send + 'static,
    timings: Timings,
) -> Result<LabRun, RunError> {
    LabGuest::start(config, console, timings)?.wait()
}

impl LabGuest {
    /// Starts a guest. Its COM1 output goes to `console`.
    ///
    /// # Errors
    /// [`RunError`]; all resources are released.
    pub fn start(
        config: &LabConfig,
        console: impl Write + Send + 'static,
        timings: Timings,
    ) -> Result<Self, RunError> {
        let prepared = Prepared::new(config)?;
        let hooks = Arc::clone(&prepared.hooks) as Arc<dyn RunHooks>;
        let guest = Guest::start(&prepared.config, hooks, console, timings)?;
        Ok(prepared.started(guest))
    }

    /// Starts a guest whose vCPUs are paused before their first instruction.
    ///
    /// # Errors
    /// [`RunError`]; all resources are released.
    pub fn start_paused(
        config: &LabConfig,
        console: impl Write + Send + 'static,
        timings: Timings,
    ) -> Result<(Self, Paused), RunError> {
        let prepared = Prepared::new(config)?;
        let hooks = Arc::clone(&prepared.hooks) as Arc<dyn RunHooks>;
        let (guest, paused) = Guest::start_paused(&prepared.config, hooks, console, timings)?;
        Ok((prepared.started(guest), paused))
    }

    /// The machine, which can be paused, inspected, saved and restored.
    pub fn vm(&self) -> &Vm {
        self.guest.vm()
    }

    /// Whether standard input, a terminal, is connected to the guest's COM1.
    pub fn has_terminal(&self) -> bool {
        self.guest.has_terminal()
    }

    /// The publisher of its steal-time records.
    pub fn publisher(&self) -> PublisherKind {
        self.guest.publisher()
    }

    /// The payload's report; `None` for a payload of another project.
    pub fn report(&self) -> Option<&ReportView> {
        self.hooks.report()
    }

    /// The intervals for which `vcpu` was descheduled so far, in order.
    pub fn descheduled(&self, vcpu: VcpuId) -> Vec<Descheduled> {
        self.hooks.descheduled(vcpu)
    }

    /// The faults injected for `vcpu` so far; `None` without fault injection.
    pub fn fault_counts(&self, vcpu: VcpuId) -> Option<FaultCounts> {
        self.hooks.fault_counts(vcpu)
    }

    /// Returns the guest as a scheduler needs it. Its vCPU threads must have attached.
    ///
    /// # Errors
    /// [`RunError`] if the host has no file descriptor left.
    pub fn scheduled_guest(&self) -> Result<ScheduledGuest, RunError> {
        let doorbell = self.doorbell.as_ref().map(|doorbell| doorbell.try_clone()).transpose();
        Ok(ScheduledGuest {
            handles: self.guest.vcpu_handles(),
            report: self.report().cloned(),
            clock: self.guest.clock(),
            doorbell: doorbell.map_err(RunError::Doorbell)?,
            event_sender: self.guest.event_sender()?,
        })
    }

    /// Attaches `scheduler`, which decides which vCPUs run. Disables directed yield.
    pub fn attach_scheduler(&self, scheduler: Arc<dyn GuestScheduler>) {
        self.hooks.attach_scheduler(scheduler);
    }

    /// Waits up to `limit` until all vCPUs of the payload are up, or until the guest has ended or
    /// termination is requested.
    pub fn wait_until_up(&self, limit: Duration) {
        self.wait_for(Milestone::AllUp, limit);
    }

    /// Waits up to `limit` until the payload's window opens, or until the guest has ended or
    /// termination is requested; returns whether it did. A payload of another project has no window.
    pub fn wait_for_window(&self, limit: Duration) -> bool {
        self.wait_for(Milestone::WindowOpens, limit)
    }

    /// Waits up to `limit` until the payload's window opens, and returns the guest then.
    ///
    /// # Errors
    /// Why it does not open: the error of a vCPU thread, the end of the guest, or a request to
    /// terminate.
    pub fn with_open_window(self, limit: Duration) -> Result<Self, Error> {
        if self.wait_for_window(limit) {
            return Ok(self);
        }
        if termination::requested().is_some() {
            return Err(Error::Interrupted);
        }
        if self.vm().has_ended() {
            let outcome = self.wait()?.monitor.outcome;
            return Err(Error::test_guest(format!("ended before its window opened: {outcome}")));
        }
        Err(Error::test_guest(format!("did not open its window in {limit:?}")))
    }

    fn wait_for(&self, milestone: Milestone, limit: Duration) -> bool {
        let Some(report) = self.report() else { return false };
        let is_reached = || report.header.milestone.load(Ordering::Acquire) >= milestone as u32;
        self.guest.wait_until(is_reached, limit)
    }

    /// Asks the payload to close its window and to end. Does not wait.
    pub fn close(&self) {
        if let Some(report) = self.report() {
            report.header.close_now.store(1, Ordering::Relaxed);
        }
    }

    /// Waits until the guest ends.
    ///
    /// # Errors
    /// [`RunError`]; all resources are released.
    pub fn wait(self) -> Result<LabRun, RunError> {
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
            window: hooks.own_window(*id),
            descheduled: hooks.descheduled(*id),
            directed_yields: hooks.directed_yields(*id),
            faults: hooks.fault_counts(*id),
        };
        let vcpus = monitor.vcpus.iter().map(vcpu).collect();
        Ok(LabRun { workload, report, window: hooks.window(), vcpus, monitor })
    }
}

/// The monitor's configuration of a guest, and the lab's hooks.
struct Prepared {
    config: vmm::guest::GuestConfig,
    hooks: Arc<LabHooks>,
    workload: Option<Workload>,
    doorbell: Option<Arc<EventFd>>,
}

impl Prepared {
    fn new(config: &LabConfig) -> Result<Self, RunError> {
        let mut guest = config.guest.clone();
        let payload = guest.payload.open()?;
        let is_ours = payload.note().is_some();
        // The monitor boots the file that was inspected here, whatever its path leads to by then.
        guest.payload = PayloadSource::Opened(payload);
        let workload = is_ours.then(|| workload(config)).transpose()?;
        match &workload {
            Some(workload) => guest.cmdline = workload.to_string(),
            None if !config.options.is_empty() => {
                return Err(RunError::ForeignOptions(config.options.clone()));
            }
            None => {}
        }
        let doorbell = config.doorbell.then(|| EventFd::new(libc::EFD_NONBLOCK).map(Arc::new)).transpose();
        let doorbell = doorbell.map_err(RunError::Doorbell)?;
        let events = doorbell.iter().map(Arc::clone);
        let port = protocol::payload::machine::DOORBELL_PORT;
        guest.port_events.extend(events.map(|event| PortEvent { port, event }));
        let has_doorbell = is_ours && yields_by_option(&config.options);
        let hooks =
            Arc::new(LabHooks::new(guest.cpus.clone(), config.faults, config.announces, has_doorbell));
        Ok(Self { config: guest, hooks, workload, doorbell })
    }

    fn started(self, guest: Guest) -> LabGuest {
        LabGuest { guest, hooks: self.hooks, workload: self.workload, doorbell: self.doorbell }
    }
}

/// Parses the workload. Options win over the command line, and this over hints.
fn workload(config: &LabConfig) -> Result<Workload, RunError> {
    let line = format!("{} {} {}", config.hints, config.guest.cmdline, config.options);
    let parsed = params::parse(&line).map(|(workload, _)| workload);
    parsed.map_err(|error| RunError::Parameter(error.to_string()))
}

fn first_instruction(report: &ReportView, clock: &GuestClock) -> Option<Instant> {
    let tsc = report.vcpus.first()?.first_instruction.load(Ordering::Relaxed);
    if tsc == 0 { None } else { clock.moment(tsc) }
}

/// Whether the options make waiters ring the doorbell, which gives vCPU threads a real-time class.
/// The command line cannot: it may come with a guest's image.
fn yields_by_option(options: &str) -> bool {
    let wait = options.split_whitespace().rev().find_map(|word| word.strip_prefix("wait="));
    wait == Some(Wait::Yield.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doorbell_needs_the_last_wait_option_to_be_yield() {
        for (options, expected) in [
            ("", false),
            ("wait=spin", false),
            ("job=contend wait=yield", true),
            ("wait=yield wait=spin", false),
        ] {
            assert_eq!(yields_by_option(options), expected, "{options}");
        }
    }
}
