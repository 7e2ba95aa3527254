//! `bench sched`: how accurately each mechanism carries out round robin with a given slice.
//!
//! The guest only counts, so its count is the CPU time that it had. The count of a guest with one
//! vCPU per CPU under the host's scheduler is the baseline. Beside it stand the kernel's record of
//! context switches and the delays of decisions. The default publisher is `off`: the cost of
//! publishing is the question of `bench switch`.

use std::fmt::{self, Display};
use std::time::Duration;

use clap::Args;
use protocol::payload::params::{Job, Workload};
use serde::Serialize;

use super::{BenchArgs, BenchReport, RoundArgs, TAKEN};
use crate::error::Error;
use crate::guest::RunError;
use crate::policy::catalogue::PolicyChoice;
use crate::render::HostLine;
use crate::results::statistics::per_second;
use crate::results::{OutcomeKind, Quantiles, SchedFigures};
use crate::runner::{Experiment, Rounds, SessionPlan};
use crate::sched::SchedConfig;
use crate::sched::cpu_hog::Load;
use crate::sched::fidelity::GapCause;
use crate::sched::mechanism::{MechanismChoice, MechanismKind};
use crate::session::SessionResult;
use crate::table::{Table, figure, or_dash, ratio, taken};
use host::facts::HostFacts;
use steal_time::publisher::PublisherKind;

/// Lets all vCPUs come up, and scheduling begin, before the window opens.
const WARMUP_MS: u32 = 150;
/// Time after which a vCPU that did not run ends the run; longer than a run.
const STARVATION: Duration = Duration::from_secs(30);

/// `vmm-lab bench sched`.
#[derive(Debug, Args)]
pub struct SchedBenchArgs {
    /// Options of all benches.
    #[command(flatten)]
    pub common: BenchArgs,
    /// Rounds and windows.
    #[command(flatten)]
    pub rounds: RoundArgs,
    /// Slices, separated by commas
    #[arg(long = "slice-ms", value_name = "LIST", value_delimiter = ',', default_value = "1,3,10", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub slices_ms: Vec<u32>,
    /// vCPUs per CPU, separated by commas
    #[arg(long = "overcommit", value_name = "LIST", value_delimiter = ',', default_value = "2", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub overcommits: Vec<u16>,
    /// Publisher of the steal-time records
    #[arg(long, value_name = "PUBLISHER", default_value = "off", value_parser = vmm::cli::publisher)]
    pub publisher: PublisherKind,
    /// Load the CPUs beside the guest, as in duty=50%,burst=10ms
    #[arg(long, value_name = "LOAD")]
    pub cpu_hog: Option<Load>,
}

/// One guest under round robin, or under the host's scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Point {
    /// The mechanism; `None` for the baseline.
    pub(super) mechanism: Option<MechanismKind>,
    /// Slice of round robin (ms).
    pub(super) slice_ms: u32,
    /// vCPUs per CPU.
    pub(super) overcommit: u16,
}

/// One vCPU per CPU under the host's scheduler.
pub(super) const FREE: Point = Point { mechanism: None, slice_ms: 0, overcommit: 1 };

impl Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mechanism {
            None => f.write_str("free"),
            Some(kind) => write!(f, "{kind}, {} ms, {}x", self.slice_ms, self.overcommit),
        }
    }
}

/// Results of all rounds.
#[derive(Debug, Serialize)]
pub(super) struct SchedBench {
    #[serde(flatten)]
    pub(super) rounds: Rounds<Point, SessionResult>,
    #[serde(skip)]
    pub(super) points: Vec<Point>,
}

pub(super) fn run(args: &SchedBenchArgs) -> Result<SchedBench, Error> {
    let mut points = vec![FREE];
    for kind in [MechanismKind::Class, MechanismKind::Deschedule] {
        for overcommit in args.overcommits.iter().copied() {
            let point = |slice_ms| Point { mechanism: Some(kind), slice_ms, overcommit };
            points.extend(args.slices_ms.iter().copied().map(point));
        }
    }
    let workload = Workload {
        job: Job::Watch,
        warmup_ms: WARMUP_MS,
        duration_ms: args.rounds.duration_ms,
        ..Workload::DEFAULT
    };
    let experiment = Experiment { host: HostFacts::probe(), cpus: args.common.usable_cpus()?, workload };
    let rounds = args.rounds.runner(&args.common).measure(&points, |point| {
        let plan = SessionPlan {
            guests: 1,
            vcpus: experiment.cpus.count() * usize::from(point.overcommit),
            publisher: args.publisher,
            sched: Some(sched(*point)?),
            cpu_hog: args.cpu_hog,
        };
        let result = experiment.run_session(plan, workload)?;
        match result.guests.iter().find(|guest| guest.outcome.kind != OutcomeKind::Reset) {
            Some(guest) => Err(Error::failed(point, guest.outcome.in_short())),
            None => Ok(result),
        }
    })?;
    Ok(SchedBench { rounds, points })
}

fn sched(point: Point) -> Result<SchedConfig, Error> {
    let text = match point.mechanism {
        None => "host:affinity=home".to_owned(),
        Some(_) => format!("rr:slice={}ms", point.slice_ms),
    };
    let policy: PolicyChoice = text.parse().map_err(RunError::from)?;
    let mechanism = point.mechanism.map_or(MechanismChoice::Auto, MechanismChoice::Only);
    Ok(SchedConfig { policy, mechanism, seed: 1, starvation: STARVATION, traces: false })
}

/// What the guest counted per ns.
fn progress(result: &SessionResult) -> Option<f64> {
    let window = result.guests.first()?.window.as_ref()?;
    Some(per_second(window.preempted?.own_samples, window.length_ns) / 1e9)
}

/// Takes one of the quantiles (ns).
type At = fn(Quantiles) -> u64;

const P50: At = |times| times.p50_ns;
const P99: At = |times| times.p99_ns;
const MAX: At = |times| times.max_ns;

impl SchedBench {
    fn median(&self, point: Point, figure: impl Fn(&SchedFigures) -> Option<f64>) -> Option<f64> {
        self.rounds.median(&point, |result| figure(result.sched.as_ref()?))
    }

    /// Medians over rounds of several quantiles of a delay in us, separated by slashes; `-` if
    /// there was none.
    fn delays(&self, point: Point, pick: fn(&SchedFigures) -> Option<Quantiles>, at: &[At]) -> String {
        let us = |at: &At| {
            let of = |s: &SchedFigures| Some(at(pick(s).filter(|times| times.count > 0)?) as f64 / 1e3);
            self.median(point, of).map(figure)
        };
        let cells: Option<Vec<_>> = at.iter().map(us).collect();
        cells.map_or_else(|| "-".to_owned(), |cells| cells.join(" / "))
    }

    fn names(point: Point) -> [String; 3] {
        [
            point.mechanism.map_or_else(|| "free".to_owned(), |kind| kind.to_string()),
            if point.slice_ms == 0 { "-".to_owned() } else { point.slice_ms.to_string() },
            format!("{}x", point.overcommit),
        ]
    }

    fn schedule_table(&self) -> Table {
        let header = [
            "mechanism",
            "slice ms",
            "overcommit",
            "decisions",
            "guest",
            "fidelity",
            "on-plan",
            "missed",
            "gaps",
            "fair server",
            "taken",
        ];
        let mut table = Table::new(&header, 1);
        for point in self.points.iter().copied() {
            let guest =
                self.rounds.median_with(&point, &FREE, |here, free| Some(progress(here)? / progress(free)?));
            let fidelity =
                self.median(point, |s| Some(s.observed.as_ref().filter(|_| s.decisions > 0)?.fidelity));
            let on_plan = guest.zip(fidelity).map(|(guest, fidelity)| guest * fidelity);
            let gaps = |of_fair_server: bool| {
                self.median(point, |s| {
                    let gaps = s.observed.as_ref()?.gaps.iter();
                    Some(gaps.filter(|gap| !of_fair_server || gap.cause == GapCause::FairServer).count()
                        as f64)
                })
            };
            table.row(Self::names(point).into_iter().chain([
                or_dash(self.median(point, |s| Some(s.decisions as f64)), figure),
                or_dash(guest, ratio),
                or_dash(fidelity, ratio),
                or_dash(on_plan, ratio),
                or_dash(self.median(point, |s| Some(s.observed.as_ref()?.missed as f64)), figure),
                or_dash(gaps(false), figure),
                or_dash(gaps(true), figure),
                taken(self.rounds.disturbance(&point)),
            ]));
        }
        table
    }

    fn delay_table(&self) -> Table {
        let header = [
            "mechanism",
            "slice ms",
            "overcommit",
            "decision delay us",
            "dispatch delay us",
            "stop delay us",
            "preempted us",
        ];
        let mut table = Table::new(&header, 1);
        for point in self.points.iter().copied() {
            table.row(Self::names(point).into_iter().chain([
                self.delays(point, |s| Some(s.decision_delay), &[P50, P99]),
                self.delays(
                    point,
                    |s| s.observed.as_ref().map(|observed| observed.dispatch_delay),
                    &[P50, P99, MAX],
                ),
                self.delays(point, |s| s.observed.as_ref().map(|observed| observed.stop_delay), &[P50]),
                self.delays(point, |s| Some(s.preempted_delay), &[P50, P99]),
            ]));
        }
        table
    }
}

impl BenchReport for SchedBench {
    fn was_interrupted(&self) -> bool {
        self.rounds.interrupted
    }
}

impl Display for SchedBench {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rounds = self.rounds.count();
        write!(f, "{}", self.rounds.interruption())?;
        let Some(result) = self.rounds.first() else { return Ok(()) };
        let Some(guest) = result.guests.first() else { return Ok(()) };
        let hog = result.cpu_hog.map_or_else(|| "nothing".to_owned(), |load| load.to_string());
        writeln!(
            f,
            "{}, CPUs {}, publisher {};\nround robin, {} ms a point, medians of {rounds} rounds; CPU hog: {hog}\n",
            HostLine(&guest.host),
            guest.guest.cpus,
            guest.publisher.kind,
            guest.workload.unwrap_or_default().duration_ms,
        )?;
        writeln!(f, "{}", self.schedule_table())?;
        writeln!(
            f,
            "guest: work relative to one vCPU per CPU without a policy, in the same round. fidelity: share of\n\
             vCPU time inside the assigned slices, by the kernel's record. on-plan: guest x fidelity. missed:\n\
             decisions whose vCPU did not run. gaps: 20 ms and more in which no assigned vCPU ran.\n{TAKEN}"
        )?;
        writeln!(f, "{}", self.delay_table())?;
        writeln!(
            f,
            "p50 / p99 / max. decision: end of the slice to the decision. dispatch, stop: decision to the new\n\
             vCPU running, to the old one stopped. preempted: request to the byte set by the monitor."
        )
    }
}
