//! Experiments: guests with the embedded payload on the same host and CPUs.
//!
//! Each point is a guest of its own, from its first instruction to its last, so that no point
//! inherits anything from the one before.

use std::io;
use std::time::{Duration, Instant};

use protocol::payload::params::Workload;

use super::{Measurement, Point};
use crate::error::Error;
use crate::guest::LabConfig;
use crate::results::{LockFigures, OutcomeKind, RunResult, WindowFigures};
use crate::sched::SchedConfig;
use crate::sched::cpu_hog::Load;
use crate::session::{self, SessionConfig, SessionResult};
use host::cpus::Cpus;
use host::disturbance::Disturbance;
use host::facts::HostFacts;
use steal_time::publisher::PublisherKind;

/// How much longer than its window a guest may run before it times out.
const GRACE: Duration = Duration::from_secs(30);

/// What all points of an experiment have in common.
#[derive(Clone, Debug)]
pub struct Experiment {
    /// The host.
    pub host: HostFacts,
    /// CPUs that the vCPU threads share.
    pub cpus: Cpus,
    /// The workload, except for what a point varies.
    pub workload: Workload,
}

/// What runs beside or above the guests of a session.
#[derive(Clone, Debug)]
pub struct SessionPlan {
    /// Number of guests.
    pub guests: usize,
    /// vCPUs of each guest.
    pub vcpus: usize,
    /// Publisher of the steal-time records.
    pub publisher: PublisherKind,
    /// The policy and how it is carried out; `None` for the host's scheduler.
    pub sched: Option<SchedConfig>,
    /// Load on the CPUs beside the guests.
    pub cpu_hog: Option<Load>,
}

impl Experiment {
    /// Runs a guest of `vcpus` vCPUs that does `workload` and opens a window.
    ///
    /// # Errors
    /// [`Error`], also if the guest did not reset, or closed no window: it has no figures.
    pub fn run(
        &self,
        vcpus: usize,
        publisher: PublisherKind,
        workload: Workload,
    ) -> Result<RunResult, Error> {
        let result = self.run_to_end(vcpus, publisher, workload)?;
        if result.window.is_none() {
            return Err(failed(vcpus, workload, "its window did not open and close"));
        }
        Ok(result)
    }

    /// Runs a guest of `vcpus` vCPUs that does `workload`, with a window or without.
    ///
    /// # Errors
    /// [`Error`], also if the guest did not reset.
    pub fn run_to_end(
        &self,
        vcpus: usize,
        publisher: PublisherKind,
        workload: Workload,
    ) -> Result<RunResult, Error> {
        let plan = SessionPlan { guests: 1, vcpus, publisher, sched: None, cpu_hog: None };
        let result = self.run_session(plan, workload)?.guests.pop();
        match result {
            Some(result) if result.outcome.kind == OutcomeKind::Reset => Ok(result),
            other => {
                Err(failed(vcpus, workload, other.as_ref().map_or("no guest", |r| r.outcome.in_short())))
            }
        }
    }

    /// Runs the guests of `plan`, each of which does `workload`.
    ///
    /// # Errors
    /// [`Error`], also if a guest ended in a way that leaves no figures. A guest whose policy
    /// gave up has figures up to that moment.
    pub fn run_session(&self, plan: SessionPlan, workload: Workload) -> Result<SessionResult, Error> {
        let SessionPlan { guests, vcpus, publisher, sched, cpu_hog } = plan;
        let length = Duration::from_millis(u64::from(workload.warmup_ms) + u64::from(workload.duration_ms));
        let cpus = self.cpus.clone();
        let guest = LabConfig::embedded(vcpus, cpus, publisher, workload.to_string(), length + GRACE);
        let guest = guest.with(|guest| guest.start = workload.scene.start());
        let config = SessionConfig { guest, guests, sched, cpu_hog };
        let result = session::run(&config, io::sink, Instant::now())?.result(&self.host, cpu_hog);
        for guest in &result.guests {
            match guest.outcome.kind {
                OutcomeKind::Reset | OutcomeKind::Stopped => {}
                OutcomeKind::Interrupted => return Err(Error::Interrupted),
                OutcomeKind::Exit | OutcomeKind::Crash | OutcomeKind::TimedOut => {
                    return Err(failed(vcpus, workload, guest.outcome.in_short()));
                }
            }
        }
        Ok(result)
    }

    /// Measures one point.
    ///
    /// # Errors
    /// [`Error`].
    pub fn measure(&self, point: Point) -> Result<RunResult, Error> {
        let vcpus = self.cpus.count() * point.overcommit;
        self.run(vcpus, point.publisher, point.apply_to(self.workload))
    }
}

fn failed(vcpus: usize, workload: Workload, how: &str) -> Error {
    Error::failed(format_args!("a guest of {vcpus} vCPUs that does {workload}"), how)
}

impl Measurement for RunResult {
    fn disturbance(&self) -> Disturbance {
        self.window.as_ref().map_or_else(Disturbance::unknown, |window| window.host.disturbance)
    }
}

impl Measurement for SessionResult {
    /// That of the guest from which most was taken: their windows overlap.
    fn disturbance(&self) -> Disturbance {
        let of_guests = self.guests.iter().map(RunResult::disturbance);
        let by_amount = |one: &Disturbance, other: &Disturbance| {
            one.verdict().cmp(&other.verdict()).then(one.share().total_cmp(&other.share()))
        };
        of_guests.max_by(by_amount).unwrap_or_else(Disturbance::unknown)
    }
}

/// The window and what the lock did in it, if the payload contended for one.
pub fn lock_of(result: &RunResult) -> Option<(&WindowFigures, &LockFigures)> {
    let window = result.window.as_ref()?;
    Some((window, window.lock.as_ref()?))
}
