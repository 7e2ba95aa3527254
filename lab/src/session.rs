//! Sessions: one guest or several on the same CPUs, with or without a policy and a load beside
//! them.
//!
//! This is how `vmm-lab run` and the scheduling benches run guests. One wide guest and several
//! narrow ones are different experiments: gang scheduling runs each narrow guest as a whole, but
//! cannot help a guest wider than its host.
//!
//! All guests run the same workload. Each ends by itself when its window closes; scheduling goes on
//! until the last one ends.

use std::io::Write;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::guest::{LabConfig, LabGuest, LabRun, RunError};
use crate::results::{RunResult, SCHEMA, SchedFigures};
use crate::sched::cpu_hog::Load;
use crate::sched::mechanism::MechanismKind;
use crate::sched::{self, PriorityBoost, SchedConfig, SchedOutcome, Scheduling};
use crate::trace::{self, Trace};
use host::cpu_hog::CpuHog;
use host::facts::HostFacts;
use steal_time::publisher::PublisherKind;
use vmm::timings::Timings;

/// Time for the payload's vCPUs to come up. Afterwards scheduling begins in any case.
const STARTUP_LIMIT: Duration = Duration::from_secs(5);

/// Configuration of a session.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// Configuration of each guest.
    pub guest: LabConfig,
    /// Number of guests.
    pub guests: usize,
    /// How the guests are scheduled; `None` leaves that to the host.
    pub sched: Option<SchedConfig>,
    /// The load on the guests' CPUs.
    pub cpu_hog: Option<Load>,
}

impl SessionConfig {
    /// A session of one guest, without a policy and a load.
    pub fn of(guest: LabConfig) -> Self {
        Self { guest, guests: 1, sched: None, cpu_hog: None }
    }
}

/// A running session.
#[derive(Debug)]
pub struct Session {
    config: LabConfig,
    guests: Vec<LabGuest>,
    sched: Option<Scheduling>,
    // Dropped in this order, after the guests.
    boost: Option<PriorityBoost>,
    _cpu_hog: Option<CpuHog>,
}

/// A session that ended.
#[derive(Debug)]
pub struct SessionRun {
    /// Configuration of each guest.
    pub config: LabConfig,
    /// Outcome of each guest.
    pub guests: Vec<LabRun>,
    /// Outcome of scheduling; `None` without a policy.
    pub sched: Option<SchedOutcome>,
}

/// The result document of a session.
#[derive(Clone, Debug, Serialize)]
pub struct SessionResult {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The load on the guests' CPUs.
    pub cpu_hog: Option<Load>,
    /// Results of scheduling; `None` without a policy.
    pub sched: Option<SchedFigures>,
    /// Results of each guest.
    pub guests: Vec<RunResult>,
}

/// Runs a session to its end. The COM1 output of each guest goes to a sink that `console` creates.
///
/// # Errors
/// [`RunError`]; all resources are released.
pub fn run<C: Write + Send + 'static>(
    config: &SessionConfig,
    console: impl Fn() -> C,
    began: Instant,
) -> Result<SessionRun, RunError> {
    Session::start(config, console, began)?.wait()
}

impl Session {
    /// Starts a session. The COM1 output of each guest goes to a sink that `console` creates;
    /// `began` is the start of its timings.
    ///
    /// # Errors
    /// [`RunError`]; all resources are released.
    pub fn start<C: Write + Send + 'static>(
        config: &SessionConfig,
        console: impl Fn() -> C,
        began: Instant,
    ) -> Result<Self, RunError> {
        let mut guest = config.guest.clone();
        if let Some(sched) = &config.sched {
            let needs = sched.needs()?;
            guest.hints = sched::workload_params(needs, sched.traces);
            guest.doorbell = needs.doorbell;
        }
        let mut start = |_| {
            let started = LabGuest::start(&guest, console(), Timings::since(began));
            // All guests have the same publisher.
            guest.announces = false;
            started
        };
        let guests: Vec<LabGuest> = (0..config.guests.max(1)).map(&mut start).collect::<Result<_, _>>()?;
        let cpu_hog = config.cpu_hog.map(|load| load.start(&guest.guest.cpus)).transpose();
        let cpu_hog = cpu_hog.map_err(RunError::CpuHog)?;
        // Among many vCPU threads that spin, this thread would not get a CPU for long.
        let mut boost = config.sched.as_ref().map(|_| PriorityBoost::acquire());
        let sched =
            config.sched.as_ref().map(|sched| attach_scheduler(sched, &guests, &guest)).transpose()?;
        if sched.as_ref().is_some_and(|sched| sched.mechanism() == MechanismKind::Deschedule) {
            boost = None;
        }
        Ok(Self { config: guest, guests, sched, boost, _cpu_hog: cpu_hog })
    }

    /// Whether standard input, a terminal, is connected to the COM1 of a guest.
    pub fn has_terminal(&self) -> bool {
        self.guests.iter().any(LabGuest::has_terminal)
    }

    /// Waits until all guests end.
    ///
    /// # Errors
    /// [`RunError`]; all resources are released.
    pub fn wait(self) -> Result<SessionRun, RunError> {
        let Self { config, guests, sched, boost, _cpu_hog } = self;
        let reports: Vec<_> = guests.iter().map(|guest| guest.report().cloned()).collect();
        let mut runs = Vec::with_capacity(guests.len());
        for guest in guests {
            let run = guest.wait()?;
            if !run.monitor.outcome.is_by_itself() {
                // An early end of one guest ends all: each closes its window and keeps its results.
                for report in reports.iter().flatten() {
                    report.header.close_now.store(1, std::sync::atomic::Ordering::Relaxed);
                }
            }
            runs.push(run);
        }
        let sched = sched.map(Scheduling::finish);
        drop(boost);
        Ok(SessionRun { config, guests: runs, sched })
    }
}

/// Waits until the guests are up, and starts to schedule them.
fn attach_scheduler(
    sched: &SchedConfig,
    guests: &[LabGuest],
    config: &LabConfig,
) -> Result<Scheduling, RunError> {
    let began = Instant::now();
    let mut scheduled = Vec::with_capacity(guests.len());
    for guest in guests {
        guest.wait_until_up(STARTUP_LIMIT.saturating_sub(began.elapsed()));
        scheduled.push(guest.scheduled_guest()?);
    }
    let publisher = guests.first().map_or(PublisherKind::Off, LabGuest::publisher);
    let attach = |guest: usize, scheduler| guests[guest].attach_scheduler(scheduler);
    Scheduling::start(sched, scheduled, publisher, &config.guest.cpus, attach)
}

impl SessionRun {
    /// Returns the result document; `cpu_hog` is the load of the session.
    pub fn result(&self, host: &HostFacts, cpu_hog: Option<Load>) -> SessionResult {
        let guests: Vec<_> =
            self.guests.iter().map(|run| RunResult::new(host.clone(), &self.config, run)).collect();
        let descheduled = || {
            self.guests.iter().flat_map(|run| &run.vcpus).flat_map(|vcpu| vcpu.descheduled.iter().copied())
        };
        let sched = self.sched.as_ref().map(|outcome| SchedFigures::new(outcome, descheduled()));
        SessionResult { schema: SCHEMA, cpu_hog, sched, guests }
    }

    /// Returns the trace; `None` without a policy.
    pub fn trace(&self) -> Option<Trace> {
        self.sched.as_ref().map(|sched| trace::of(sched, &self.guests))
    }
}

impl SessionResult {
    /// The exit status: that of the first guest that did not end well, or 0.
    pub fn status(&self) -> u8 {
        self.guests.iter().map(|guest| guest.outcome.status).find(|status| *status != 0).unwrap_or(0)
    }
}
