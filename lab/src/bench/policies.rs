//! `bench policies`: what each policy costs a lock, in one wide guest or in several narrow ones.
//!
//! Two figures compare within a round. `retained` is the throughput relative to the same lock under
//! the same policy at the first overcommit. `speedup` is the throughput relative to the first
//! policy at the same overcommit. Beside them stands the fidelity: figures of a policy that was not
//! carried out mean nothing.

mod report;

use std::fmt::{self, Display};
use std::time::{Duration, Instant};

use clap::Args;
use protocol::payload::params::{Job, Lock, Wait, Workload};
use serde::{Serialize, Serializer};

use super::{BenchArgs, RoundArgs};
use crate::error::Error;
use crate::guest::RunError;
use crate::options::LoadArgs;
use crate::options::parse::{self, Named};
use crate::policy::catalogue::PolicyChoice;
use crate::publisher::ChosenPublisher;
use crate::results::as_word;
use crate::runner::{Experiment, Rounds, SessionPlan, WaitMode};
use crate::sched::SchedConfig;
use crate::sched::cpu_hog::Load;
use crate::sched::mechanism::MechanismChoice;
use crate::session::SessionResult;
use host::facts::HostFacts;
use steal_time::publisher::{PublisherChoice, PublisherKind};

/// Lets all vCPUs come up, and scheduling begin, before the window opens.
const WARMUP_MS: u32 = 150;

/// How the vCPUs are spread over guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// One guest has all of them.
    Wide,
    /// Several guests have one per CPU each.
    Narrow,
}

impl Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Wide => "wide",
            Self::Narrow => "narrow",
        })
    }
}

/// `vmm-lab bench policies`.
#[derive(Debug, Args)]
pub struct PoliciesArgs {
    /// Options of all benches.
    #[command(flatten)]
    pub common: BenchArgs,
    /// Rounds and windows.
    #[command(flatten)]
    pub rounds: RoundArgs,
    /// A policy with its parameters (see `vmm-lab policies`); may be repeated. Each is compared
    /// with the first
    #[arg(long = "policy", value_name = "POLICY", value_parser = parse::policy, default_values = ["rr", "host", "deferral", "yield:target=next"])]
    pub policies: Vec<PolicyChoice>,
    /// How decisions are carried out: auto, class or deschedule
    #[arg(long, value_name = "MECHANISM", default_value = "auto", value_parser = parse::mechanism)]
    pub mechanism: MechanismChoice,
    /// Locks, separated by commas
    #[arg(id = "lock", long, value_name = "LIST", value_delimiter = ',', value_parser = Named(Lock::ALL, Lock::name), default_value = "tas,ticket,mcs,mutex")]
    pub locks: Vec<Lock>,
    /// Way of waiting, except under policies that need waiters to name the vCPU they wait for
    #[arg(long, value_name = "MODE", default_value = "spin", value_parser = parse::wait_mode)]
    pub wait: WaitMode,
    /// vCPUs per CPU, separated by commas; each is compared with the first
    #[arg(long = "overcommit", value_name = "LIST", value_delimiter = ',', default_value = "1,2,4", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub overcommits: Vec<u16>,
    /// One wide guest, several narrow ones, or both in turn, separated by commas
    #[arg(long = "shape", value_name = "LIST", value_delimiter = ',', default_value = "wide")]
    pub shapes: Vec<Shape>,
    /// Publisher of the steal-time records
    #[arg(long, value_name = "PUBLISHER", default_value = "auto", value_parser = vmm::cli::choice)]
    pub publisher: PublisherChoice,
    /// End a run if a policy has not run a vCPU for this long
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = vmm::cli::seconds)]
    pub starvation: Duration,
    /// Load the CPUs beside the guests, as in duty=50%,burst=10ms
    #[arg(long, value_name = "LOAD")]
    pub cpu_hog: Option<Load>,
    /// Critical sections and waiting.
    #[command(flatten)]
    pub load: LoadArgs,
}

/// A command line with the options of `vmm-lab bench policies`, for programs with their own policy.
#[derive(Debug, clap::Parser)]
pub struct PoliciesCli {
    /// The options.
    #[command(flatten)]
    pub args: PoliciesArgs,
}

/// One or several guests that contend for a lock under a policy.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct PolicyPoint {
    /// The policy.
    pub(super) policy: PolicyChoice,
    /// The lock.
    #[serde(serialize_with = "as_word")]
    pub(super) lock: Lock,
    /// How its waiters wait.
    pub(super) wait: WaitMode,
    /// One wide guest, or several narrow ones.
    pub(super) shape: Shape,
    /// vCPUs per CPU.
    pub(super) overcommit: u16,
}

impl Display for PolicyPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { policy, lock, shape, overcommit, .. } = self;
        write!(f, "{policy}, {lock}, {overcommit}x, {shape}")
    }
}

/// Results of all rounds.
#[derive(Debug, Serialize)]
pub struct PoliciesBench {
    pub(super) publisher: ChosenPublisher,
    #[serde(flatten)]
    pub(super) rounds: Rounds<PolicyPoint, SessionResult>,
    #[serde(skip)]
    pub(super) points: Vec<PolicyPoint>,
    #[serde(serialize_with = "as_seconds")]
    pub(super) took: Duration,
}

fn as_seconds<S: Serializer>(took: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(took.as_secs_f64())
}

/// Compares `policies`, of the catalogue or of your own, with the options `args`.
///
/// # Errors
/// [`Error`] if a policy cannot be made or a point cannot be measured.
pub fn compare(policies: &[PolicyChoice], args: &PoliciesArgs) -> Result<PoliciesBench, Error> {
    let began = Instant::now();
    let points = points(policies, args)?;
    let publisher = ChosenPublisher::settle(args.publisher)?;
    publisher.announce();
    let workload = Workload {
        job: Job::Contend,
        warmup_ms: WARMUP_MS,
        duration_ms: args.rounds.duration_ms,
        ..args.load.apply_to(Workload::DEFAULT)
    };
    let experiment = Experiment { host: HostFacts::probe(), cpus: args.common.usable_cpus()?, workload };
    let runner = args.rounds.runner(&args.common);
    let rounds = runner.measure(&points, |point| measure(&experiment, point, publisher.kind, args))?;
    Ok(PoliciesBench { publisher, rounds, points, took: began.elapsed() })
}

fn points(policies: &[PolicyChoice], args: &PoliciesArgs) -> Result<Vec<PolicyPoint>, Error> {
    let mut points = Vec::new();
    for shape in args.shapes.iter().copied() {
        for lock in args.locks.iter().copied() {
            for policy in policies {
                let made = policy.make(args.load.seed()).map_err(RunError::from)?;
                // A policy that needs the vCPUs waited for needs waiters that name them.
                let wait = if made.needs().yield_targets { WaitMode::new(Wait::Yield) } else { args.wait };
                let point =
                    |overcommit| PolicyPoint { policy: policy.clone(), lock, wait, shape, overcommit };
                points.extend(args.overcommits.iter().copied().map(point));
            }
        }
    }
    Ok(points)
}

fn measure(
    experiment: &Experiment,
    point: &PolicyPoint,
    publisher: PublisherKind,
    args: &PoliciesArgs,
) -> Result<SessionResult, Error> {
    let (cpus, overcommit) = (experiment.cpus.count(), usize::from(point.overcommit));
    let (guests, vcpus) = match point.shape {
        Shape::Wide => (1, cpus * overcommit),
        Shape::Narrow => (overcommit, cpus),
    };
    let sched = Some(SchedConfig {
        policy: point.policy.clone(),
        mechanism: args.mechanism,
        seed: args.load.seed(),
        starvation: args.starvation,
        traces: false,
    });
    let plan = SessionPlan { guests, vcpus, publisher, sched, cpu_hog: args.cpu_hog };
    let workload = point.wait.apply_to(Workload { lock: point.lock, ..experiment.workload });
    experiment.run_session(plan, workload)
}
