//! Locks: what each gives and what that costs, waiting in one way or another, with so many vCPUs a CPU.
//!
//! Two figures compare within a round: what a point *kept* of the same lock's throughput, waiting the same way, at the first
//! load; and what it *gained* over the same lock at the same load with the first way to wait.

use std::fmt::{self, Display};

use protocol::payload::params::{Lock, Workload};
use serde::Serialize;

use super::rounds::{Ratio, Rounds};
use super::{Bench, BenchError};
use crate::cli::LocksArgs;
use crate::experiment::{Point, WaitMode};
use crate::results::{LockFigures, Shares};
use crate::table::{Table, figure};

/// All rounds.
#[derive(Debug, Serialize)]
pub(super) struct LocksBench {
    #[serde(flatten)]
    rounds: Rounds,
    #[serde(skip)]
    points: Vec<Point>,
    /// What loads, and ways to wait, are compared with.
    #[serde(skip)]
    first: Option<(usize, WaitMode)>,
}

pub(super) fn run(args: &LocksArgs) -> Result<LocksBench, BenchError> {
    let kinds = if args.kinds.is_empty() { Lock::ALL } else { &args.kinds };
    let mut points = Vec::new();
    for lock in kinds.iter().copied() {
        for wait in args.waits.iter().copied() {
            points.extend(args.loads.iter().map(|load| Point {
                lock,
                wait,
                check: args.check,
                publisher: args.publisher,
                overcommit: usize::from(*load),
            }));
        }
    }
    let rounds = Rounds::measure(args.load.over(Workload::DEFAULT), &points, args.rounds, &args.common)?;
    let first = points.first().map(|point| (point.overcommit, point.wait));
    Ok(LocksBench { rounds, points, first })
}

/// A column: its head, and the median of what it shows.
type Column = (&'static str, fn(&Rounds, Point) -> f64);

const MS: f64 = 1e6;
const US: f64 = 1e3;

/// What a point gives, besides throughput.
const GIVES: [Column; 8] = [
    ("jain", |r, p| r.figure(p, |lock| lock.jain)),
    ("gap ms", |r, p| r.figure(p, |lock| lock.longest_gap_ns as f64 / MS)),
    ("worst", |r, p| r.worst(p, |lock| lock.longest_gap_ns as f64 / MS)),
    ("p50 us", |r, p| r.figure(p, |lock| lock.waits.p50_ns as f64 / US)),
    ("p99 us", |r, p| r.figure(p, |lock| lock.waits.p99_ns as f64 / US)),
    ("longest ms", |r, p| r.figure(p, |lock| lock.waits.longest_ns as f64 / MS)),
    ("by time p50 ms", |r, p| r.figure(p, |lock| lock.waits_by_time.p50_ns as f64 / MS)),
    ("p99 ms", |r, p| r.figure(p, |lock| lock.waits_by_time.p99_ns as f64 / MS)),
];

/// A part of the CPU time.
type Part = fn(&Shares) -> f64;

/// Shares of all CPU time.
const SHARES: [(&str, Part); 6] = [
    ("useful", |shares| shares.useful),
    ("spin", |shares| shares.spin),
    ("wasted", |shares| shares.wasted),
    ("kicks", |shares| shares.kicks),
    ("rest", |shares| shares.rest),
    ("idle", |shares| shares.idle),
];

/// A counter.
type Count = fn(&LockFigures) -> u64;

/// Counts in a second.
const RATES: [(&str, Count); 11] = [
    ("holder", |lock| lock.holder_preemptions),
    ("next", |lock| lock.next_preemptions),
    ("unnamed", |lock| lock.unnamed),
    ("byte", |lock| lock.preempted_seen),
    ("halts", |lock| lock.halts),
    ("spurious", |lock| lock.spurious_wakes),
    ("kicks", |lock| lock.kicks),
    ("yields", |lock| lock.yields),
    ("steals", |lock| lock.steals),
    ("early", |lock| lock.early_waits),
    ("exits", |lock| lock.queue_exits),
];

impl LocksBench {
    fn names(point: Point) -> [String; 3] {
        [point.lock.to_string(), point.wait.to_string(), format!("{}x", point.overcommit)]
    }

    fn what_they_give(&self) -> Table {
        let heads = [
            "lock", "wait", "load", "clean", "acq/s", "kept", "(least", "most)", "gained", "(least", "most)",
        ];
        let heads: Vec<&str> = heads.into_iter().chain(GIVES.map(|(head, _)| head)).collect();
        let mut table = Table::new(&heads, 3);
        for point in self.points.iter().copied() {
            let (load, wait) = self.first.unwrap_or((point.overcommit, point.wait));
            let kept = self.rounds.ratio(point, Point { overcommit: load, ..point });
            let gained = self.rounds.ratio(point, Point { wait, ..point });
            let clean = kept.map_or(0, |kept| kept.clean);
            let middle = [
                format!("{clean}/{}", self.rounds.count()),
                figure(self.rounds.figure(point, |lock| lock.per_second)),
            ];
            let figures = GIVES.map(|(head, column)| {
                let value = column(&self.rounds, point);
                if head == "jain" { format!("{value:.3}") } else { figure(value) }
            });
            let cells = Self::names(point).into_iter().chain(middle);
            table.row(cells.chain(ratio_cells(kept)).chain(ratio_cells(gained)).chain(figures));
        }
        table
    }

    fn what_they_cost(&self) -> Table {
        let heads = ["lock", "wait", "load"].into_iter().chain(SHARES.map(|(head, _)| head));
        let last = ["wake p50 us", "p99 us", "holder us", "next us", "unnamed us"];
        let heads: Vec<&str> = heads.chain(RATES.map(|(head, _)| head)).chain(last).collect();
        let mut table = Table::new(&heads, 3);
        for point in self.points.iter().copied() {
            let shares = SHARES
                .map(|(_, share)| format!("{:.3}", self.rounds.figure(point, |lock| share(&lock.shares))));
            let rates = RATES.map(|(_, count)| figure(self.rounds.rate(point, count)));
            let mean = |total: u64, count: u64| total as f64 / US / (count.max(1)) as f64;
            let last = [
                self.rounds.figure(point, |lock| lock.wakes.p50_ns as f64 / US),
                self.rounds.figure(point, |lock| lock.wakes.p99_ns as f64 / US),
                self.rounds.figure(point, |lock| mean(lock.holder_stall_ns, lock.holder_preemptions)),
                self.rounds.figure(point, |lock| mean(lock.next_stall_ns, lock.next_preemptions)),
                self.rounds.figure(point, |lock| mean(lock.unnamed_ns, lock.unnamed)),
            ];
            table.row(Self::names(point).into_iter().chain(shares).chain(rates).chain(last.map(figure)));
        }
        table
    }
}

/// A ratio's median, least and most; `-` of none.
pub(super) fn ratio_cells(ratio: Option<Ratio>) -> [String; 3] {
    let show = |value: f64| if value < 0.01 { format!("{value:.5}") } else { format!("{value:.3}") };
    match ratio {
        Some(Ratio { median, least, most, .. }) => [median, least, most].map(show),
        None => ["-", "-", "-"].map(str::to_owned),
    }
}

impl Bench for LocksBench {
    fn was_interrupted(&self) -> bool {
        self.rounds.interrupted
    }
}

impl Display for LocksBench {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.rounds.interrupted {
            writeln!(f, "Interrupted in round {}\n", self.rounds.count())?;
        }
        let Some(first) = self.rounds.first() else { return Ok(()) };
        let Workload {
            locks, section_ns, section_spread, think_ns, think_spread, readers, duration_ms, ..
        } = first.workload.unwrap_or_default();
        write!(
            f,
            "{} (KVM on {}, Linux {}), CPUs {}, publisher {}; {section_ns} ns ({section_spread}) in the lock, \
             {think_ns} ns ({think_spread}) between",
            first.host.processor,
            first.host.kvm_backend,
            first.host.kernel,
            first.guest.cpus,
            first.publisher.kind,
        )?;
        if locks > 1 {
            write!(f, ", {locks} locks")?;
        }
        if readers > 0 {
            write!(f, ", {readers} % of sections only read")?;
        }
        writeln!(f, "; {duration_ms} ms a point, median of {} rounds\n", self.rounds.count())?;
        let (load, wait) = self.first.map_or((1, String::new()), |(load, wait)| (load, wait.to_string()));
        writeln!(f, "{}", self.what_they_give())?;
        writeln!(
            f,
            "kept: of the same lock, waiting the same way, at {load}x; gained: over {wait}; both in the same round, of \
             clean rounds.\ngap: longest time in which nobody got through, and the worst of all rounds. Waits by grant, \
             then by time.\n"
        )?;
        writeln!(f, "{}", self.what_they_cost())?;
        writeln!(
            f,
            "Shares of all CPU time, of which wasted is the part of spin that was for a preempted vCPU; then counts in a \
             second.\nholder, next: preempted in the lock, or as the one to whom it was passed; unnamed: where nobody can \
             name it. What each cost on average, last."
        )
    }
}
