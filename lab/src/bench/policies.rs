//! Policies: what each costs a lock, at so many vCPUs a CPU, in one wide guest or in several narrow ones.
//!
//! Two figures compare within a round: what a point *kept* of the same lock's throughput under the same policy at the first
//! load; and what it *gained* over the first policy at the same load. Beside them stands how far the plan was carried out: a
//! policy that did not happen has no figures.

use std::fmt::{self, Display};
use std::io;
use std::time::{Duration, Instant};

use protocol::payload::params::{Job, Lock, Wait, Workload};
use serde::{Serialize, Serializer};

use super::locks::ratio_cells;
use super::rounds::Ratio;
use super::sanity::{Kept, sanity};
use super::{Bench, BenchError, median};
use crate::cli::{PoliciesArgs, Shape, usable_cpus};
use crate::demo::progress_bar;
use crate::experiment::{WaitMode, lock_of};
use crate::guest::LabConfig;
use crate::policy::catalogue::PolicyChoice;
use crate::results::{SchedFigures, as_word};
use crate::sched::SchedConfig;
use crate::session::{self, SessionConfig, SessionError, SessionResult};
use crate::table::{Table, figure};
use host::cpus::Cpus;
use host::facts::HostFacts;
use vmm::supervise::Outcome;

/// Vcpus come up, and steering begins, before the window opens.
const WARMUP_MS: u32 = 150;
/// How much longer than its window a guest may take before it is given up.
const PATIENCE: Duration = Duration::from_secs(30);

/// A point: all that varies.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct PolicyPoint {
    /// Who chooses.
    pub(super) policy: PolicyChoice,
    /// The lock.
    #[serde(serialize_with = "as_word")]
    pub(super) lock: Lock,
    /// How waiters wait.
    pub(super) wait: WaitMode,
    /// One wide guest, or several narrow ones.
    pub(super) shape: Shape,
    /// vCPUs for each CPU.
    pub(super) load: u16,
}

/// All rounds.
#[derive(Debug, Serialize)]
pub struct PoliciesBench {
    rounds: Vec<Vec<(PolicyPoint, SessionResult)>>,
    #[serde(skip)]
    points: Vec<PolicyPoint>,
    #[serde(serialize_with = "as_seconds")]
    took: Duration,
    interrupted: bool,
}

fn as_seconds<S: Serializer>(took: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(took.as_secs_f64())
}

/// Compares `policies`, of the catalogue or your own, as `args` say.
///
/// # Errors
/// [`BenchError`].
pub fn compare(policies: &[PolicyChoice], args: &PoliciesArgs) -> Result<PoliciesBench, BenchError> {
    let began = Instant::now();
    let mut points = Vec::new();
    for shape in args.shapes.iter().copied() {
        for lock in args.kinds.iter().copied() {
            for policy in policies {
                let asks =
                    policy.make(args.load.seed()).map_err(SessionError::from_policy)?.needs().yield_targets;
                // Whoever is to be told whom waiters wait for needs waiters that tell.
                let wait = if asks { WaitMode::new(Wait::Yield) } else { args.wait };
                let point = |load| PolicyPoint { policy: policy.clone(), lock, wait, shape, load };
                points.extend(args.loads.iter().copied().map(point));
            }
        }
    }
    let cpus = usable_cpus(args.common.cpus.as_ref())?;
    let bar = progress_bar(points.len() * usize::from(args.rounds.rounds), args.common.quiet);
    let mut all = PoliciesBench { rounds: Vec::new(), points, took: Duration::ZERO, interrupted: false };
    let host = HostFacts::probe();
    'rounds: for round in 1..=args.rounds.rounds {
        let mut runs = Vec::with_capacity(all.points.len());
        for point in &all.points {
            let PolicyPoint { policy, lock, load, shape, .. } = point;
            bar.set_message(format!("round {round}: {policy}, {lock}, {load}x, {shape}"));
            let result = measure(point, args, &cpus, &host)?;
            let was_interrupted = result.guests.iter().any(|guest| guest.outcome.kind == "interrupted");
            if was_interrupted {
                all.interrupted = true;
                break;
            }
            runs.push((point.clone(), result));
            bar.inc(1);
        }
        all.rounds.push(runs);
        if all.interrupted {
            break 'rounds;
        }
    }
    bar.finish_and_clear();
    all.took = began.elapsed();
    Ok(all)
}

/// Measures a point until it is not disturbed, so often at the most.
fn measure(
    point: &PolicyPoint,
    args: &PoliciesArgs,
    cpus: &Cpus,
    host: &HostFacts,
) -> Result<SessionResult, BenchError> {
    let base = args.load.over(Workload::DEFAULT);
    let WaitMode { wait, every } = point.wait;
    let duration_ms = args.rounds.duration_ms;
    let workload = Workload {
        job: Job::Contend,
        lock: point.lock,
        wait,
        check_every: every,
        warmup_ms: WARMUP_MS,
        duration_ms,
        ..base
    };
    let (guests, vcpus) = match point.shape {
        Shape::Wide => (1, cpus.count() * usize::from(point.load)),
        Shape::Narrow => (usize::from(point.load), cpus.count()),
    };
    let timeout = Duration::from_millis(u64::from(WARMUP_MS + duration_ms)) + PATIENCE;
    let config = SessionConfig {
        guest: LabConfig::embedded(vcpus, cpus.clone(), args.publisher, workload.to_string(), timeout),
        guests,
        sched: Some(SchedConfig {
            policy: point.policy.clone(),
            mechanism: args.mechanism,
            seed: args.load.seed(),
            starvation: args.starvation,
            traces: false,
        }),
        cpu_hog: args.cpu_hog,
    };
    let run = || -> Result<SessionResult, BenchError> {
        let run = session::run(&config, io::sink, Instant::now())?;
        let lost = run.guests.iter().map(|guest| &guest.monitor.outcome).find(|outcome| is_loss(outcome));
        if let Some(lost) = lost {
            let (policy, lock, load) = (&point.policy, point.lock, point.load);
            return Err(BenchError::Point(format!("{policy}, {lock}, {load}x: {lost:?}")));
        }
        Ok(run.result(host, config.cpu_hog))
    };
    let mut result = run()?;
    for _ in 0..args.rounds.retries {
        if !is_disturbed(&result) {
            break;
        }
        result = run()?;
    }
    Ok(result)
}

/// Whether a guest ended in a way that has no figures. One whose policy gave up has, those so far.
fn is_loss(outcome: &Outcome) -> bool {
    !matches!(outcome, Outcome::Reset | Outcome::Stopped | Outcome::Interrupted)
}

fn is_disturbed(result: &SessionResult) -> bool {
    result.guests.iter().filter_map(|guest| guest.window.as_ref()).any(|window| window.host.disturbed)
}

/// Throughput of all guests together.
fn throughput(result: &SessionResult) -> Option<f64> {
    result.guests.iter().map(|guest| Some(lock_of(guest)?.1.per_second)).sum()
}

/// Shows a figure of a point.
type Column = (&'static str, fn(&SessionResult) -> f64);

fn worst(result: &SessionResult, figure: fn(&crate::results::LockFigures) -> u64) -> f64 {
    result.guests.iter().filter_map(lock_of).map(|(_, lock)| figure(lock)).max().unwrap_or(0) as f64
}

fn a_second(result: &SessionResult, count: fn(&crate::results::LockFigures) -> u64) -> f64 {
    let rate = |(window, lock): (&crate::results::WindowFigures, _)| {
        count(lock) as f64 * 1e9 / (window.length_ns as f64).max(1.0)
    };
    result.guests.iter().filter_map(lock_of).map(rate).sum()
}

fn sched(result: &SessionResult, figure: fn(&SchedFigures) -> Option<f64>) -> f64 {
    result.sched.as_ref().and_then(figure).unwrap_or(f64::NAN)
}

const GIVES: [Column; 5] = [
    ("gap ms", |r| worst(r, |lock| lock.longest_gap_ns) / 1e6),
    ("p99 us", |r| worst(r, |lock| lock.waits.p99_ns) / 1e3),
    ("by time p99 ms", |r| worst(r, |lock| lock.waits_by_time.p99_ns) / 1e6),
    ("holder/s", |r| a_second(r, |lock| lock.holder_preemptions)),
    ("next/s", |r| a_second(r, |lock| lock.next_preemptions)),
];

const PLANS: [Column; 6] = [
    ("decisions", |r| sched(r, |s| Some(s.decisions as f64))),
    ("fidelity", |r| sched(r, |s| s.fact.as_ref().filter(|_| s.decisions > 0).map(|fact| fact.fidelity))),
    ("on p50 us", |r| {
        sched(r, |s| s.fact.as_ref().filter(|f| f.on.count > 0).map(|f| f.on.p50_ns as f64 / 1e3))
    }),
    ("missed", |r| sched(r, |s| s.fact.as_ref().map(|fact| fact.missed as f64))),
    ("refused", |r| {
        sched(r, |s| Some((s.refused.late + s.refused.contradictory + s.refused.impossible) as f64))
    }),
    ("gaps", |r| sched(r, |s| s.fact.as_ref().map(|fact| fact.gaps.len() as f64))),
];

impl PoliciesBench {
    fn of<'b>(&'b self, point: &'b PolicyPoint) -> impl Iterator<Item = &'b SessionResult> {
        let in_round = move |round: &'b Vec<(PolicyPoint, SessionResult)>| {
            round.iter().find(|(other, _)| other == point).map(|(_, result)| result)
        };
        self.rounds.iter().filter_map(in_round)
    }

    fn figure(&self, point: &PolicyPoint, figure: fn(&SessionResult) -> f64) -> f64 {
        let known = self.of(point).map(figure).filter(|value| !value.is_nan());
        median(known).unwrap_or(f64::NAN)
    }

    /// Throughput of `point` over that of `base`, in rounds in which neither was disturbed.
    fn ratio(&self, point: &PolicyPoint, base: &PolicyPoint) -> Option<Ratio> {
        let ratio = |round: &Vec<(PolicyPoint, SessionResult)>| {
            let find = |wanted: &PolicyPoint| {
                round.iter().find(|(other, _)| other == wanted).map(|(_, result)| result)
            };
            let (here, base) = (find(point)?, find(base)?);
            let is_clean = !is_disturbed(here) && !is_disturbed(base);
            is_clean.then(|| Some(throughput(here)? / throughput(base)?)).flatten()
        };
        Ratio::of(&self.rounds.iter().filter_map(ratio).collect::<Vec<_>>())
    }

    /// The same lock at the first load of the same policy and shape.
    fn kept(&self, point: &PolicyPoint) -> Option<Ratio> {
        let load = self.points.first()?.load;
        self.ratio(point, &PolicyPoint { load, ..point.clone() })
    }

    fn table(&self) -> Table {
        let heads = ["lock", "shape", "load", "policy", "wait", "clean", "acq/s", "kept", "gained"];
        let heads = heads.into_iter().chain(GIVES.map(|(head, _)| head)).chain(PLANS.map(|(head, _)| head));
        let mut table = Table::new(&heads.chain(["ended"]).collect::<Vec<_>>(), 5);
        for point in &self.points {
            if self.of(point).next().is_none() {
                continue;
            }
            let first = self
                .points
                .iter()
                .find(|other| (other.lock, other.shape, other.load) == (point.lock, point.shape, point.load));
            let kept = self.kept(point);
            let gained = first.and_then(|first| self.ratio(point, first));
            let show = |value: f64| if value.is_nan() { "-".to_owned() } else { figure(value) };
            let names = [
                point.lock.to_string(),
                point.shape.to_string(),
                format!("{}x", point.load),
                point.policy.to_string(),
                point.wait.to_string(),
                format!("{}/{}", kept.map_or(0, |kept| kept.clean), self.rounds.len()),
                show(self.figure(point, |result| throughput(result).unwrap_or(f64::NAN))),
            ];
            let ratios = [kept, gained].map(|ratio| ratio_cells(ratio)[0].clone());
            let figures = GIVES.into_iter().chain(PLANS).map(|(head, column)| {
                let value = self.figure(point, column);
                if head == "fidelity" && !value.is_nan() { format!("{value:.3}") } else { show(value) }
            });
            let ended = self.of(point).find_map(|result| result.sched.as_ref()?.ended.clone());
            table.row(names.into_iter().chain(ratios).chain(figures).chain(ended));
        }
        table
    }
}

impl Bench for PoliciesBench {
    fn was_interrupted(&self) -> bool {
        self.interrupted
    }
}

impl Display for PoliciesBench {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.interrupted {
            writeln!(f, "Interrupted in round {}\n", self.rounds.len())?;
        }
        let first = self.rounds.iter().flatten().next();
        let Some((guest, sched)) =
            first.and_then(|(_, result)| Some((result.guests.first()?, &result.sched)))
        else {
            return Ok(());
        };
        let Workload { section_ns, section_spread, think_ns, think_spread, duration_ms, .. } =
            guest.workload.unwrap_or_default();
        writeln!(
            f,
            "{} (KVM on {}, Linux {}), CPUs {}, publisher {}, mechanism {}; {section_ns} ns ({section_spread}) in the lock, \
             {think_ns} ns ({think_spread}) between; {duration_ms} ms a point, median of {} rounds, {:.0} s in all\n",
            guest.host.processor,
            guest.host.kvm_backend,
            guest.host.kernel,
            guest.guest.cpus,
            guest.publisher.kind,
            sched.as_ref().map_or_else(|| "none".to_owned(), |sched| sched.mechanism.to_string()),
            self.rounds.len(),
            self.took.as_secs_f64(),
        )?;
        writeln!(f, "{}", self.table())?;
        let load = self.points.first().map_or(1, |point| point.load);
        let policy = self.points.first().map(|point| point.policy.to_string()).unwrap_or_default();
        writeln!(
            f,
            "kept: of the same lock under the same policy at {load}x; gained: over {policy}; both in the same round, of clean \
             rounds.\ngap: longest time in which nobody got through. wide: one guest; narrow: as many guests as the load, each \
             with a vCPU a CPU."
        )?;
        let kept = |point: &PolicyPoint| {
            Some(Kept {
                policy: point.policy.to_string(),
                lock: point.lock,
                shape: point.shape,
                load: point.load,
                share: self.kept(point)?.median,
            })
        };
        // It knows nothing of waiters that stop by themselves.
        let spins = |point: &&PolicyPoint| matches!(point.wait.wait, Wait::Spin | Wait::Yield);
        let judged = sanity(&self.points.iter().filter(spins).filter_map(kept).collect::<Vec<_>>());
        if !judged.is_empty() {
            writeln!(f, "\nBeside the model of two lines (k vCPUs a CPU):")?;
        }
        judged.iter().try_for_each(|line| writeln!(f, "  {line}"))
    }
}
