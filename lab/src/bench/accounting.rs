//! `bench accounting`: whether run time and steal add up to wall time.
//!
//! The guest's vCPUs spin under round robin: each of them runs or waits at any time. So in a window
//! from its thread's reading to its thread's reading, its run time and the growth of its steal must
//! add up to the window's length. A sum above 1 counts time twice, and one below 1 loses some. What
//! an outer hypervisor takes is neither, and is shown beside it.

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
use crate::results::OutcomeKind;
use crate::runner::{Experiment, Rounds, SessionPlan};
use crate::sched::SchedConfig;
use crate::sched::mechanism::{MechanismChoice, MechanismKind};
use crate::session::SessionResult;
use crate::table::{Table, or_dash, taken};
use host::disturbance::Disturbance;
use host::facts::HostFacts;
use steal_time::publisher::PublisherKind;

/// Lets all vCPUs come up, and scheduling begin, before the window opens.
const WARMUP_MS: u32 = 150;
/// Time after which a vCPU that did not run ends the run; longer than a run.
const STARVATION: Duration = Duration::from_secs(30);

/// `vmm-lab bench accounting`.
#[derive(Debug, Args)]
pub struct AccountingArgs {
    /// Options of all benches.
    #[command(flatten)]
    pub common: BenchArgs,
    /// Rounds and windows.
    #[command(flatten)]
    pub rounds: RoundArgs,
    /// Slices, separated by commas
    #[arg(long = "slice-ms", value_name = "LIST", value_delimiter = ',', default_value = "1,3,10,30", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub slices_ms: Vec<u32>,
    /// vCPUs per CPU, separated by commas
    #[arg(long = "overcommit", value_name = "LIST", value_delimiter = ',', default_value = "2,4", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub overcommits: Vec<u16>,
    /// Publishers of the steal-time records, separated by commas
    #[arg(long = "publisher", value_name = "LIST", value_delimiter = ',', default_value = "bpf,bpf-classic,perf,monitor", value_parser = vmm::cli::publisher)]
    pub publishers: Vec<PublisherKind>,
}

/// One guest under round robin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Point {
    mechanism: MechanismKind,
    publisher: PublisherKind,
    /// vCPUs per CPU.
    overcommit: u16,
    /// Slice of round robin (ms).
    slice_ms: u32,
}

impl Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mechanism, publisher, overcommit, slice_ms } = self;
        write!(f, "{mechanism}, {publisher}, {overcommit}x, {slice_ms} ms")
    }
}

/// Results of all rounds.
#[derive(Debug, Serialize)]
pub(super) struct Accounting {
    #[serde(flatten)]
    rounds: Rounds<Point, SessionResult>,
    /// The rows of the table, and its columns.
    #[serde(skip)]
    rows: Vec<Vec<Point>>,
}

pub(super) fn run(args: &AccountingArgs) -> Result<Accounting, Error> {
    let mut rows: Vec<Vec<Point>> = Vec::new();
    for mechanism in [MechanismKind::Class, MechanismKind::Deschedule] {
        for publisher in args.publishers.iter().copied() {
            for overcommit in args.overcommits.iter().copied() {
                let point = |slice_ms| Point { mechanism, publisher, overcommit, slice_ms };
                rows.push(args.slices_ms.iter().copied().map(point).collect());
            }
        }
    }
    let workload = Workload {
        job: Job::Watch,
        warmup_ms: WARMUP_MS,
        duration_ms: args.rounds.duration_ms,
        ..Workload::DEFAULT
    };
    let experiment = Experiment { host: HostFacts::probe(), cpus: args.common.usable_cpus()?, workload };
    let rounds = args.rounds.runner(&args.common).measure(&rows.concat(), |point| {
        let policy: PolicyChoice =
            format!("rr:slice={}ms", point.slice_ms).parse().map_err(RunError::from)?;
        let mechanism = MechanismChoice::Only(point.mechanism);
        let plan = SessionPlan {
            guests: 1,
            vcpus: experiment.cpus.count() * usize::from(point.overcommit),
            publisher: point.publisher,
            sched: Some(SchedConfig { policy, mechanism, seed: 1, starvation: STARVATION, traces: false }),
            cpu_hog: None,
        };
        let result = experiment.run_session(plan, workload)?;
        match result.guests.iter().find(|guest| guest.outcome.kind != OutcomeKind::Reset) {
            Some(guest) => Err(Error::failed(point, guest.outcome.in_short())),
            None => Ok(result),
        }
    })?;
    Ok(Accounting { rounds, rows })
}

impl BenchReport for Accounting {
    fn was_interrupted(&self) -> bool {
        self.rounds.interrupted
    }
}

impl Display for Accounting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rounds = self.rounds.count();
        write!(f, "{}", self.rounds.interruption())?;
        let guest = self.rounds.first().and_then(|result| result.guests.first());
        let (Some(guest), Some(slices)) = (guest, self.rows.first()) else { return Ok(()) };
        writeln!(
            f,
            "{}, CPUs {};\nrun time and steal, relative to wall time; {} ms a point, medians of {rounds} rounds\n",
            HostLine(&guest.host),
            guest.guest.cpus,
            guest.workload.unwrap_or_default().duration_ms,
        )?;
        let mut header = ["mechanism", "publisher", "overcommit"].map(str::to_owned).to_vec();
        header.extend(slices.iter().map(|point| format!("{} ms", point.slice_ms)));
        header.push("taken".to_owned());
        let mut table = Table::new(&header.iter().map(String::as_str).collect::<Vec<_>>(), 2);
        for row in &self.rows {
            let Some(Point { mechanism, publisher, overcommit, .. }) = row.first() else { continue };
            let accounted = |point| {
                let of = |result: &SessionResult| result.guests.first()?.accounted();
                or_dash(self.rounds.median(point, of), |share| format!("{share:.4}"))
            };
            let disturbances = row.iter().filter_map(|point| self.rounds.disturbance(point));
            let names = [mechanism.to_string(), publisher.to_string(), format!("{overcommit}x")];
            let others = taken(disturbances.reduce(Disturbance::and));
            table.row(names.into_iter().chain(row.iter().map(accounted)).chain([others]));
        }
        write!(f, "{table}\nBar: 0.99 to 1.01. What an outer hypervisor takes is neither.\n{TAKEN}")
    }
}
