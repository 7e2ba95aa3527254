//! A session: one guest or several on the same CPUs, who steers them, and what loads the host beside them.
//!
//! One wide guest and several narrow ones are different experiments. A gang helps the several, each of which then has its vCPUs
//! together; it cannot help the one that is wider than its host.
//!
//! All guests do the same. They end by themselves, each when its own window has closed; whoever is steered goes on being steered
//! until the last one has.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::guest::{LabConfig, LabGuest, LabGuestError, LabRun};
use crate::policy::parameters::ParameterError;
use crate::results::{RunResult, SCHEMA, SchedFigures};
use crate::sched::cpu_hog::{CpuHogThreads, Load};
use crate::sched::mechanism::MechanismKind;
use crate::sched::{self, Precedence, SchedConfig, SchedError, SchedOutcome, Scheduling};
use crate::trace::{self, Trace};
use host::facts::HostFacts;
use vmm::timings::Timings;

/// What our payload's vCPUs may take to come up before steering begins all the same.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is to be run.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// Each guest.
    pub guest: LabConfig,
    /// How many there are.
    pub guests: usize,
    /// Who steers them, if anybody does.
    pub sched: Option<SchedConfig>,
    /// What loads the host beside them.
    pub cpu_hog: Option<Load>,
}

/// Guests could not be run.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// A guest.
    #[error(transparent)]
    Guest(#[from] LabGuestError),
    /// Who is to sched.
    #[error(transparent)]
    Steer(#[from] SchedError),
    /// The load.
    #[error("Cannot start the cpu_hog's threads")]
    CpuHogThreads(#[source] io::Error),
}

impl SessionError {
    /// Of a policy that cannot be had.
    pub fn from_policy(error: ParameterError) -> Self {
        Self::Steer(error.into())
    }
}

/// Guests that have run.
#[derive(Debug)]
pub struct SessionRun {
    /// What each was run with, but for the seed.
    pub config: LabConfig,
    /// What is left of each.
    pub guests: Vec<LabRun>,
    /// What is left of sched.
    pub sched: Option<SchedOutcome>,
}

/// Guests that have run, as one document.
#[derive(Clone, Debug, Serialize)]
pub struct SessionResult {
    /// [`SCHEMA`].
    pub schema: u32,
    /// What loaded the host beside them.
    pub cpu_hog: Option<Load>,
    /// The plan and the fact.
    pub sched: Option<SchedFigures>,
    /// Each guest.
    pub guests: Vec<RunResult>,
}

/// Runs guests to their ends. What they send on COM1 goes to what `console` makes for each.
///
/// # Errors
/// [`SessionError`]; nothing is left behind.
pub fn run<C: Write + Send + 'static>(
    config: &SessionConfig,
    console: impl Fn() -> C,
    began: Instant,
) -> Result<SessionRun, SessionError> {
    let mut guest = config.guest.clone();
    if let Some(sched) = &config.sched {
        let needs = sched.needs().map_err(SessionError::from_policy)?;
        guest.hints = sched::words(needs, sched.traces);
        guest.doorbell = needs.doorbell;
    }
    let start = |_| LabGuest::start(&guest, console(), Timings::since(began));
    let guests: Vec<LabGuest> = (0..config.guests.max(1)).map(start).collect::<Result<_, _>>()?;
    let beside = config.cpu_hog.map(|load| CpuHogThreads::start(load, &guest.guest.cpus)).transpose();
    let _beside = beside.map_err(SessionError::CpuHogThreads)?;
    // Among many vCPU threads that spin this one would not get to it for long.
    let mut precedence = config.sched.as_ref().map(|_| Precedence::take());
    let sched = config.sched.as_ref().map(|sched| attach_scheduler(sched, &guests, &guest)).transpose()?;
    if sched.as_ref().is_some_and(|sched| sched.mechanism() == MechanismKind::Deschedule) {
        precedence = None;
    }
    let reports: Vec<_> = guests.iter().map(|guest| guest.report().cloned()).collect();
    let mut runs = Vec::with_capacity(guests.len());
    for guest in guests {
        let run = guest.wait()?;
        if !run.monitor.outcome.is_by_itself() {
            // Whatever ended one before its time ends all: each closes its window, and has its figures so far.
            for report in reports.iter().flatten() {
                report.header.close_now.store(1, std::sync::atomic::Ordering::Relaxed);
            }
        }
        runs.push(run);
    }
    let sched = sched.map(Scheduling::finish);
    drop(precedence);
    Ok(SessionRun { config: guest, guests: runs, sched })
}

/// Begins to steer guests that are under way.
fn attach_scheduler(
    sched: &SchedConfig,
    guests: &[LabGuest],
    config: &LabConfig,
) -> Result<Scheduling, SessionError> {
    let began = Instant::now();
    let mut steered = Vec::with_capacity(guests.len());
    for guest in guests {
        guest.wait_until_up(PATIENCE.saturating_sub(began.elapsed()));
        steered.push(guest.to_be_scheduled()?);
    }
    let publisher = guests.first().map_or(steal_time::publisher::PublisherKind::Off, LabGuest::publisher);
    let attach = |guest: usize, scheduler| guests[guest].attach_scheduler(scheduler);
    Ok(Scheduling::start(sched, steered, publisher, &config.guest.cpus, attach)?)
}

impl SessionRun {
    /// The document of it.
    pub fn result(&self, host: &HostFacts, cpu_hog: Option<Load>) -> SessionResult {
        let guests: Vec<_> =
            self.guests.iter().map(|run| RunResult::new(host.clone(), &self.config, run)).collect();
        let holds = || {
            self.guests.iter().flat_map(|run| &run.vcpus).flat_map(|vcpu| vcpu.descheduled.iter().copied())
        };
        let sched = self.sched.as_ref().map(|remains| SchedFigures::new(remains, holds()));
        SessionResult { schema: SCHEMA, cpu_hog, sched, guests }
    }

    /// The trace of it.
    pub fn trace(&self) -> Option<Trace> {
        self.sched.as_ref().map(|sched| trace::of(sched, &self.guests))
    }
}

impl SessionResult {
    /// The exit status that tells of all: that of the first guest that did not end well.
    pub fn status(&self) -> u8 {
        self.guests.iter().map(|guest| guest.outcome.status).find(|status| *status != 0).unwrap_or(0)
    }
}
