//! `bench locks`: the throughput that locks retain in each way of waiting when vCPUs share CPUs.
//!
//! Two figures compare within a round. `retained` is the throughput relative to the same lock with
//! the same way of waiting at the first overcommit. `speedup` is the throughput relative to the
//! same lock at the same overcommit with the first way of waiting.

use std::fmt::{self, Display};

use clap::Args;
use protocol::payload::params::{Check, Lock, Workload};
use serde::Serialize;

use super::{BenchArgs, BenchReport, RoundArgs, TAKEN, ratio_cells, rounds_cell};
use crate::error::Error;
use crate::options::LoadArgs;
use crate::options::parse::{self, Named};
use crate::publisher::ChosenPublisher;
use crate::render::HostLine;
use crate::results::statistics::{per_second, ratio as ratio_of};
use crate::results::{LockFigures, RunResult};
use crate::runner::{Experiment, Point, Rounds, WaitMode, lock_of};
use crate::table::{Table, figure, fixed, or_dash, taken};
use host::facts::HostFacts;
use steal_time::publisher::PublisherChoice;

/// Lets all vCPUs come up before the window opens.
const WARMUP_MS: u32 = 200;

/// `vmm-lab bench locks`.
#[derive(Debug, Args)]
pub struct LocksArgs {
    /// Options of all benches.
    #[command(flatten)]
    pub common: BenchArgs,
    /// Rounds and windows.
    #[command(flatten)]
    pub rounds: RoundArgs,
    /// Locks, separated by commas [default: all]
    #[arg(id = "lock", long, value_name = "LIST", value_delimiter = ',', value_parser = Named(Lock::ALL, Lock::name))]
    pub locks: Vec<Lock>,
    /// Ways of waiting, separated by commas; each is compared with the first. In preempted/16
    /// waiters read the byte once per 16 turns of the loop
    #[arg(long = "wait", value_name = "LIST", value_delimiter = ',', default_value = "spin,threshold,preempted", value_parser = parse::wait_mode)]
    pub waits: Vec<WaitMode>,
    /// vCPUs per CPU, separated by commas; each is compared with the first
    #[arg(long = "overcommit", value_name = "LIST", value_delimiter = ',', default_value = "1,4,8", value_parser = clap::value_parser!(u16).range(1..=255))]
    pub overcommits: Vec<u16>,
    /// Publisher of the steal-time records
    #[arg(long, value_name = "PUBLISHER", default_value = "auto", value_parser = vmm::cli::choice)]
    pub publisher: PublisherChoice,
    /// Form of the check that waiters use
    #[arg(long, value_name = "FORM", value_parser = Named(Check::ALL, Check::name), default_value = "save0")]
    pub check: Check,
    /// Critical sections and waiting.
    #[command(flatten)]
    pub load: LoadArgs,
}

/// Results of all rounds.
#[derive(Debug, Serialize)]
pub(super) struct LocksBench {
    pub(super) publisher: ChosenPublisher,
    #[serde(flatten)]
    pub(super) rounds: LockRounds,
    #[serde(skip)]
    pub(super) points: Vec<Point>,
}

pub(super) fn run(args: &LocksArgs) -> Result<LocksBench, Error> {
    let publisher = ChosenPublisher::settle(args.publisher)?;
    publisher.announce();
    let locks = if args.locks.is_empty() { Lock::ALL } else { &args.locks };
    let mut points = Vec::new();
    for lock in locks.iter().copied() {
        for wait in args.waits.iter().copied() {
            points.extend(args.overcommits.iter().map(|overcommit| Point {
                lock,
                wait,
                check: args.check,
                publisher: publisher.kind,
                overcommit: usize::from(*overcommit),
            }));
        }
    }
    let rounds = measure(&points, args.load.apply_to(Workload::DEFAULT), args.rounds, &args.common)?;
    Ok(LocksBench { publisher, rounds, points })
}

/// Rounds of guests that contend for locks.
pub(super) type LockRounds = Rounds<Point, RunResult>;

/// Measures `points` in rounds; `workload` is what they have in common.
pub(super) fn measure(
    points: &[Point],
    workload: Workload,
    args: RoundArgs,
    common: &BenchArgs,
) -> Result<LockRounds, Error> {
    let workload = Workload { warmup_ms: WARMUP_MS, duration_ms: args.duration_ms, ..workload };
    let experiment = Experiment { host: HostFacts::probe(), cpus: common.usable_cpus()?, workload };
    args.runner(common).measure(points, |point| experiment.measure(*point))
}

/// Throughput of the lock (acquisitions per second).
pub(super) fn throughput(result: &RunResult) -> Option<f64> {
    Some(lock_of(result)?.1.per_second)
}

/// The median over rounds of a figure of `point`; `None` without any.
fn median(rounds: &LockRounds, point: Point, figure: impl Fn(&LockFigures) -> f64) -> Option<f64> {
    rounds.median(&point, |result| Some(figure(lock_of(result)?.1)))
}

/// The median over rounds of a count per second of `point`; `None` without any.
pub(super) fn rate(rounds: &LockRounds, point: Point, count: impl Fn(&LockFigures) -> u64) -> Option<f64> {
    let rate = |result: &RunResult| {
        let (window, lock) = lock_of(result)?;
        Some(per_second(count(lock), window.length_ns))
    };
    rounds.median(&point, rate)
}

/// A column: its header, and its cell for a point.
type Column = (&'static str, fn(&LockRounds, Point) -> String);

fn ms(rounds: &LockRounds, point: Point, ns: fn(&LockFigures) -> f64) -> String {
    or_dash(median(rounds, point, |lock| ns(lock) / 1e6), figure)
}

fn us(rounds: &LockRounds, point: Point, ns: fn(&LockFigures) -> f64) -> String {
    or_dash(median(rounds, point, |lock| ns(lock) / 1e3), figure)
}

/// The mean length in us of events that took `total` ns together.
fn mean_us(rounds: &LockRounds, point: Point, event: fn(&LockFigures) -> (u64, u64)) -> String {
    let mean = |(count, total_ns): (u64, u64)| ratio_of(total_ns as f64 / 1e3, count as f64);
    or_dash(median(rounds, point, |lock| mean(event(lock))), figure)
}

fn share(rounds: &LockRounds, point: Point, share: fn(&LockFigures) -> f64) -> String {
    or_dash(median(rounds, point, share), |share| fixed(share, 3))
}

fn count(rounds: &LockRounds, point: Point, count: fn(&LockFigures) -> u64) -> String {
    or_dash(rate(rounds, point, count), figure)
}

const WAITS: [Column; 6] = [
    ("jain", |r, p| share(r, p, |lock| lock.jain)),
    ("gap ms", |r, p| ms(r, p, |lock| lock.longest_gap_ns as f64)),
    ("worst", |r, p| {
        let gaps = r.of(&p).filter_map(|result| Some(lock_of(result)?.1.longest_gap_ns));
        or_dash(gaps.max().map(|gap| gap as f64 / 1e6), figure)
    }),
    ("p99 us", |r, p| us(r, p, |lock| lock.waits.quantile_ns(|waits| waits.p99_ns))),
    ("longest ms", |r, p| ms(r, p, |lock| lock.waits.quantile_ns(|waits| waits.longest_ns))),
    ("time-weighted p99 ms", |r, p| ms(r, p, |lock| lock.waits_by_time.quantile_ns(|waits| waits.p99_ns))),
];

const CPU_TIME: [Column; 8] = [
    ("useful", |r, p| share(r, p, |lock| lock.shares.useful)),
    ("spin", |r, p| share(r, p, |lock| lock.shares.spin)),
    ("wasted", |r, p| share(r, p, |lock| lock.shares.wasted)),
    ("kicks", |r, p| share(r, p, |lock| lock.shares.kicks)),
    ("other", |r, p| share(r, p, |lock| lock.shares.other)),
    ("idle", |r, p| share(r, p, |lock| lock.shares.idle)),
    ("wake p50 us", |r, p| us(r, p, |lock| lock.wakes.quantile_ns(|wakes| wakes.p50_ns))),
    ("p99 us", |r, p| us(r, p, |lock| lock.wakes.quantile_ns(|wakes| wakes.p99_ns))),
];

const PREEMPTIONS: [Column; 6] = [
    ("holder", |r, p| count(r, p, |lock| lock.holder_preemptions)),
    ("next", |r, p| count(r, p, |lock| lock.next_preemptions)),
    ("unnamed", |r, p| count(r, p, |lock| lock.unnamed)),
    ("holder us", |r, p| mean_us(r, p, |lock| (lock.holder_preemptions, lock.holder_stall_ns))),
    ("next us", |r, p| mean_us(r, p, |lock| (lock.next_preemptions, lock.next_stall_ns))),
    ("unnamed us", |r, p| mean_us(r, p, |lock| (lock.unnamed, lock.unnamed_ns))),
];

const EVENTS: [Column; 7] = [
    ("preempted seen", |r, p| count(r, p, |lock| lock.preempted_seen)),
    ("halts", |r, p| count(r, p, |lock| lock.halts)),
    ("kicks", |r, p| count(r, p, |lock| lock.kicks)),
    ("yields", |r, p| count(r, p, |lock| lock.yields)),
    ("steals", |r, p| count(r, p, |lock| lock.steals)),
    ("early", |r, p| count(r, p, |lock| lock.early_waits)),
    ("exits", |r, p| count(r, p, |lock| lock.queue_exits)),
];

impl LocksBench {
    fn names(point: Point) -> [String; 3] {
        [point.lock.to_string(), point.wait.to_string(), format!("{}x", point.overcommit)]
    }

    fn throughput_table(&self, first: Point) -> Table {
        let header = [
            "lock",
            "wait",
            "overcommit",
            "rounds",
            "acq/s",
            "retained",
            "(min",
            "max)",
            "speedup",
            "(min",
            "max)",
            "taken",
        ];
        let mut table = Table::new(&header, 3);
        for point in self.points.iter().copied() {
            let ratio = |base| self.rounds.ratio(&point, &base, throughput);
            let retained = ratio(Point { overcommit: first.overcommit, ..point });
            let speedup = ratio(Point { wait: first.wait, ..point });
            let middle = [
                rounds_cell(retained, self.rounds.count()),
                or_dash(median(&self.rounds, point, |lock| lock.per_second), figure),
            ];
            let cells = Self::names(point).into_iter().chain(middle);
            let taken = taken(self.rounds.disturbance(&point));
            table.row(cells.chain(ratio_cells(retained)).chain(ratio_cells(speedup)).chain([taken]));
        }
        table
    }

    fn table(&self, columns: &[Column]) -> Table {
        let names = ["lock", "wait", "overcommit"];
        let header: Vec<_> = names.into_iter().chain(columns.iter().map(|(header, _)| *header)).collect();
        let mut table = Table::new(&header, 3);
        for point in self.points.iter().copied() {
            let cells = columns.iter().map(|(_, cell)| cell(&self.rounds, point));
            table.row(Self::names(point).into_iter().chain(cells));
        }
        table
    }
}

impl BenchReport for LocksBench {
    fn was_interrupted(&self) -> bool {
        self.rounds.interrupted
    }
}

impl Display for LocksBench {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rounds = self.rounds.count();
        write!(f, "{}", self.rounds.interruption())?;
        let (Some(run), Some(first)) = (self.rounds.first(), self.points.first()) else { return Ok(()) };
        let Workload {
            locks, section_ns, section_spread, think_ns, think_spread, readers, duration_ms, ..
        } = run.workload.unwrap_or_default();
        let (host, cpus, publisher) = (HostLine(&run.host), &run.guest.cpus, &self.publisher);
        writeln!(f, "{host}, CPUs {cpus}, publisher {publisher};")?;
        write!(f, "{section_ns} ns ({section_spread}) in the lock, {think_ns} ns ({think_spread}) between")?;
        if locks > 1 {
            write!(f, ", {locks} locks")?;
        }
        if readers > 0 {
            write!(f, ", {readers} % of sections only read")?;
        }
        writeln!(f, "; {duration_ms} ms a point, median of {rounds} rounds\n")?;
        writeln!(f, "{}", self.throughput_table(*first))?;
        writeln!(
            f,
            "retained: relative to the same lock and wait at {}x. speedup: relative to wait {}.\n\
             Both compare within undisturbed rounds.\n{TAKEN}",
            first.overcommit, first.wait
        )?;
        writeln!(f, "{}", self.table(&WAITS))?;
        writeln!(
            f,
            "gap: longest time without any acquisition; worst: of all rounds. The rest are waits.\n"
        )?;
        writeln!(f, "{}", self.table(&CPU_TIME))?;
        writeln!(
            f,
            "Shares of all CPU time; wasted is the part of spin for a preempted vCPU. wake: kick to running.\n"
        )?;
        writeln!(f, "{}", self.table(&PREEMPTIONS))?;
        writeln!(
            f,
            "Preemptions per second, and their mean stall: of the holder, of the vCPU that the lock was\n\
             passed to, and of a vCPU that no waiter could name.\n"
        )?;
        writeln!(f, "{}", self.table(&EVENTS))?;
        writeln!(f, "Counts per second.")
    }
}
