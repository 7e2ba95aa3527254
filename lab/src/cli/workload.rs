//! What our own payload does: its words, typed.

use std::fmt::Write as _;

use clap::Args;
use protocol::payload::params::{self, Check, Job, Lock, MAX_LOCKS, Scene, Spread, Start, Wait, Workload};

use super::parse::Named;

/// Words for our payload, typed.
#[derive(Debug, Args)]
#[command(next_help_heading = "Workload of our own payload")]
pub struct WorkloadArgs {
    /// What the vCPUs do
    #[arg(long, value_name = "JOB", value_parser = Named(Job::ALL, Job::name))]
    pub job: Option<Job>,
    /// The scene that `--job conformance` plays
    #[arg(long, value_name = "SCENE", value_parser = Named(Scene::ALL, Scene::name))]
    pub scene: Option<Scene>,
    /// The lock that everybody wants
    #[arg(long, value_name = "LOCK", value_parser = Named(Lock::ALL, Lock::name))]
    pub lock: Option<Lock>,
    /// The form of the check that waiters use
    #[arg(long, value_name = "FORM", value_parser = Named(Check::ALL, Check::name))]
    pub check: Option<Check>,
    /// What a waiter does about the vCPU it waits for
    #[arg(long, value_name = "MODE", value_parser = Named(Wait::ALL, Wait::name))]
    pub wait: Option<Wait>,
    /// Turns of the waiting loop between two checks
    #[arg(long, value_name = "TURNS", value_parser = clap::value_parser!(u32).range(1..))]
    pub check_every: Option<u32>,
    /// What the locks guard, and how they are used.
    #[command(flatten)]
    pub load: LoadArgs,
    /// From the moment that all vCPUs are up to the measured window
    #[arg(long, value_name = "MS")]
    pub warmup_ms: Option<u32>,
    /// Length of the measured window
    #[arg(long, value_name = "MS")]
    pub duration_ms: Option<u32>,
    /// How vCPUs start: all at once by the monitor, or by INIT and SIPI
    #[arg(long, value_name = "HOW", value_parser = Named(Start::ALL, Start::name))]
    pub start: Option<Start>,
}

/// What locks guard, and how they are used.
#[derive(Clone, Debug, Args)]
pub struct LoadArgs {
    /// Locks, of which each section takes one at random, 1 to 8
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_LOCKS)))]
    pub locks: Option<u32>,
    /// Mean CPU time in the lock
    #[arg(long, value_name = "NS")]
    pub section_ns: Option<u32>,
    /// How that varies
    #[arg(long, value_name = "HOW", value_parser = Named(Spread::ALL, Spread::name))]
    pub section_spread: Option<Spread>,
    /// Mean CPU time between two acquisitions
    #[arg(long, value_name = "NS")]
    pub think_ns: Option<u32>,
    /// How that varies
    #[arg(long, value_name = "HOW", value_parser = Named(Spread::ALL, Spread::name))]
    pub think_spread: Option<Spread>,
    /// Sections in a hundred that only read (the rwsem lets them in together)
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(..=100))]
    pub readers: Option<u32>,
    /// CPU time that `--wait threshold` spins
    #[arg(long, value_name = "NS")]
    pub threshold_ns: Option<u32>,
    /// CPU time that `--wait preempted` and `twice` spin at most, whatever the byte says; 0: as long as it takes
    #[arg(long, value_name = "NS")]
    pub backstop_ns: Option<u32>,
    /// Turns of the loop that `--wait cap` spins
    #[arg(long, value_name = "TURNS")]
    pub cap_turns: Option<u32>,
    /// Seed of everything that is drawn at random
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

impl LoadArgs {
    /// The seed of everything that is drawn at random.
    pub fn seed(&self) -> u64 {
        self.seed.unwrap_or(Workload::DEFAULT.seed)
    }

    fn words(&self, add: &mut impl FnMut(&str, Option<String>)) {
        add("locks", self.locks.map(|count| count.to_string()));
        add("section_ns", self.section_ns.map(|ns| ns.to_string()));
        add("section_spread", self.section_spread.map(|how| how.to_string()));
        add("think_ns", self.think_ns.map(|ns| ns.to_string()));
        add("think_spread", self.think_spread.map(|how| how.to_string()));
        add("readers", self.readers.map(|share| share.to_string()));
        add("threshold_ns", self.threshold_ns.map(|ns| ns.to_string()));
        add("backstop_ns", self.backstop_ns.map(|ns| ns.to_string()));
        add("cap_turns", self.cap_turns.map(|turns| turns.to_string()));
        add("seed", self.seed.map(|seed| seed.to_string()));
    }

    /// `workload` with what was given.
    pub fn over(&self, workload: Workload) -> Workload {
        let mut line = format!("{workload} ");
        self.words(&mut |key, value| add(&mut line, key, value));
        // What clap has let through, the payload's own parser takes.
        params::parse(&line).map_or(workload, |(workload, _)| workload)
    }
}

/// Adds a word to `line`, if there is one.
fn add(line: &mut String, key: &str, value: Option<String>) {
    if let Some(value) = value {
        let _ = write!(line, "{key}={value} ");
    }
}

impl WorkloadArgs {
    /// The seed of everything that is drawn at random.
    pub fn seed(&self) -> u64 {
        self.load.seed()
    }

    /// The words for what was given.
    pub fn words(&self) -> String {
        let mut line = String::new();
        let mut add = |key: &str, value| add(&mut line, key, value);
        add("job", self.job.map(|job| job.to_string()));
        add("scene", self.scene.map(|scene| scene.to_string()));
        add("lock", self.lock.map(|lock| lock.to_string()));
        add("check", self.check.map(|check| check.to_string()));
        add("wait", self.wait.map(|wait| wait.to_string()));
        add("check_every", self.check_every.map(|turns| turns.to_string()));
        self.load.words(&mut add);
        add("warmup_ms", self.warmup_ms.map(|ms| ms.to_string()));
        add("duration_ms", self.duration_ms.map(|ms| ms.to_string()));
        line.trim_end().to_owned()
    }
}
