//! Experiments: the same payload at one point after another.
//!
//! A [`Point`] says what is varied; everything else is the same for all points of an experiment. Each is a guest of its
//! own, from its first instruction to its last, so that no point inherits anything from the one before.

use std::fmt::{self, Display};
use std::io;
use std::time::{Duration, Instant};

use protocol::payload::params::{Check, Job, Lock, Wait, Workload};
use serde::{Serialize, Serializer};

use crate::guest::{self, LabConfig, LabGuestError};
use crate::results::{LockFigures, RunResult, WindowFigures, as_word};
use host::cpus::Cpus;
use host::facts::HostFacts;
use steal_time::publisher::PublisherKind;
use vmm::supervise::Outcome;
use vmm::timings::Timings;

/// How much longer than its own window a guest may take before it is given up.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is the same for all points.
#[derive(Clone, Debug)]
pub struct Experiment {
    /// The host.
    pub host: HostFacts,
    /// CPUs that the vCPU threads share.
    pub cpus: Cpus,
    /// What the payload does, but for what a point says.
    pub workload: Workload,
}

/// A way to wait, with how often it checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WaitMode {
    /// The way.
    pub wait: Wait,
    /// Turns of the loop between two checks.
    pub every: u32,
}

impl WaitMode {
    /// One that checks each time around.
    pub const fn new(wait: Wait) -> Self {
        Self { wait, every: 1 }
    }
}

impl Display for WaitMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.every {
            1 => write!(f, "{}", self.wait),
            every => write!(f, "{}/{every}", self.wait),
        }
    }
}

impl Serialize for WaitMode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Point {
    /// The lock.
    #[serde(serialize_with = "as_word")]
    pub lock: Lock,
    /// Its way to wait.
    pub wait: WaitMode,
    /// The form of the check.
    #[serde(serialize_with = "as_word")]
    pub check: Check,
    /// Who publishes.
    pub publisher: PublisherKind,
    /// vCPUs for each CPU.
    pub overcommit: usize,
}

/// A point could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum ExperimentError {
    /// The guest could not be run.
    #[error(transparent)]
    Guest(#[from] LabGuestError),
    /// The guest did not end well.
    #[error("The guest of {vcpus} vCPUs that was to do {workload} did not end well: {how}")]
    Ended {
        /// Its vCPUs.
        vcpus: usize,
        /// What it was to do.
        workload: Box<Workload>,
        /// What happened.
        how: String,
    },
    /// The user ended it.
    #[error("Interrupted")]
    Interrupted,
}

impl ExperimentError {
    fn ended(vcpus: usize, workload: Workload, how: &str) -> Self {
        Self::Ended { vcpus, workload: Box::new(workload), how: how.to_owned() }
    }
}

impl Experiment {
    /// Runs a guest of `vcpus` vCPUs that does `workload` and measures.
    ///
    /// # Errors
    /// [`ExperimentError`], also when the guest did not end well: its figures would mean nothing.
    pub fn run(
        &self,
        vcpus: usize,
        publisher: PublisherKind,
        workload: Workload,
    ) -> Result<RunResult, ExperimentError> {
        let result = self.play(vcpus, publisher, workload)?;
        if result.window.is_none() {
            return Err(ExperimentError::ended(vcpus, workload, "its window did not open and close"));
        }
        Ok(result)
    }

    /// Runs a guest of `vcpus` vCPUs that does `workload`, whether that measures anything or not.
    ///
    /// # Errors
    /// [`ExperimentError`], also when the guest did not end well.
    pub fn play(
        &self,
        vcpus: usize,
        publisher: PublisherKind,
        workload: Workload,
    ) -> Result<RunResult, ExperimentError> {
        let length = Duration::from_millis(u64::from(workload.warmup_ms) + u64::from(workload.duration_ms));
        let cpus = self.cpus.clone();
        let config = LabConfig::embedded(vcpus, cpus, publisher, workload.to_string(), length + PATIENCE);
        let run = guest::run(&config, io::sink(), Timings::since(Instant::now()))?;
        let result = RunResult::new(self.host.clone(), &config, &run);
        match run.monitor.outcome {
            Outcome::Reset => Ok(result),
            Outcome::Interrupted => Err(ExperimentError::Interrupted),
            _ => Err(ExperimentError::ended(vcpus, workload, result.outcome.in_short())),
        }
    }

    /// Measures one point.
    ///
    /// # Errors
    /// [`ExperimentError`].
    pub fn measure(&self, point: Point) -> Result<RunResult, ExperimentError> {
        let Point { lock, wait: WaitMode { wait, every }, check, publisher, overcommit } = point;
        let workload = Workload { job: Job::Contend, lock, wait, check, check_every: every, ..self.workload };
        self.run(self.cpus.count() * overcommit, publisher, workload)
    }
}

/// What the lock gave, with its window, if the payload held one.
pub fn lock_of(result: &RunResult) -> Option<(&WindowFigures, &LockFigures)> {
    let window = result.window.as_ref()?;
    Some((window, window.lock.as_ref()?))
}
