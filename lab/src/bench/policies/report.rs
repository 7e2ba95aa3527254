//! Tables of `bench policies`.

use std::fmt::{self, Display};

use protocol::payload::params::{Wait, Workload};

use super::super::sanity::{Retained, sanity};
use super::super::{BenchReport, TAKEN, rounds_cell};
use super::{PoliciesBench, PolicyPoint};
use crate::error::interrupted_status;
use crate::render::HostLine;
use crate::results::statistics::per_second;
use crate::results::{LockFigures, SchedFigures, WindowFigures};
use crate::runner::{Ratio, lock_of};
use crate::session::SessionResult;
use crate::table::{Table, figure, or_dash, ratio, taken};
use vmm::supervise::Outcome;

/// Throughput of all guests together (acquisitions per second).
fn throughput(result: &SessionResult) -> Option<f64> {
    result.guests.iter().map(|guest| Some(lock_of(guest)?.1.per_second)).sum()
}

/// The largest figure among the guests; `None` if no guest has it.
fn largest(result: &SessionResult, figure: fn(&LockFigures) -> f64) -> Option<f64> {
    let figures = result.guests.iter().filter_map(lock_of).map(|(_, lock)| figure(lock));
    figures.filter(|figure| figure.is_finite()).max_by(f64::total_cmp)
}

/// A count per second over all guests; `None` if a guest has none.
fn rate(result: &SessionResult, count: fn(&LockFigures) -> u64) -> Option<f64> {
    let rate = |(window, lock): (&WindowFigures, &LockFigures)| per_second(count(lock), window.length_ns);
    result.guests.iter().map(|guest| lock_of(guest).map(rate)).sum()
}

fn sched(result: &SessionResult, figure: impl FnOnce(&SchedFigures) -> Option<f64>) -> Option<f64> {
    result.sched.as_ref().and_then(figure)
}

/// A column: its header, its figure of a point's result, and the format.
type Column = (&'static str, fn(&SessionResult) -> Option<f64>, fn(f64) -> String);

const WAITS: [Column; 4] = [
    ("p99 us", |r| Some(largest(r, |lock| lock.waits.quantile_ns(|waits| waits.p99_ns))? / 1e3), figure),
    (
        "time-weighted p99 ms",
        |r| Some(largest(r, |lock| lock.waits_by_time.quantile_ns(|waits| waits.p99_ns))? / 1e6),
        figure,
    ),
    ("holder/s", |r| rate(r, |lock| lock.holder_preemptions), figure),
    ("next/s", |r| rate(r, |lock| lock.next_preemptions), figure),
];

const SCHEDULE: [Column; 4] = [
    ("decisions", |r| sched(r, |s| Some(s.decisions as f64)), figure),
    ("fidelity", |r| sched(r, |s| Some(s.observed.as_ref().filter(|_| s.decisions > 0)?.fidelity)), ratio),
    (
        "dispatch delay p50 us",
        |r| {
            let p50_us = |s: &SchedFigures| {
                s.observed
                    .as_ref()
                    .filter(|f| f.dispatch_delay.count > 0)
                    .map(|f| f.dispatch_delay.p50_ns as f64 / 1e3)
            };
            sched(r, p50_us)
        },
        figure,
    ),
    ("missed", |r| sched(r, |s| Some(s.observed.as_ref()?.missed as f64)), figure),
];

impl PoliciesBench {
    fn retained(&self, point: &PolicyPoint) -> Option<Ratio> {
        let overcommit = self.points.first()?.overcommit;
        self.rounds.ratio(point, &PolicyPoint { overcommit, ..point.clone() }, throughput)
    }

    fn speedup(&self, point: &PolicyPoint) -> Option<Ratio> {
        let is_same = |other: &&PolicyPoint| {
            (other.lock, other.shape, other.overcommit) == (point.lock, point.shape, point.overcommit)
        };
        self.rounds.ratio(point, self.points.iter().find(is_same)?, throughput)
    }

    /// Why the policy of `point` was ended, in the first round in which it was.
    fn stop_reason(&self, point: &PolicyPoint) -> Option<String> {
        self.rounds.of(point).find_map(|result| result.sched.as_ref()?.stop_reason.clone())
    }

    /// The points that were measured at least once.
    fn measured(&self) -> impl Iterator<Item = &PolicyPoint> {
        self.points.iter().filter(|point| self.rounds.of(point).next().is_some())
    }

    fn throughput_table(&self) -> Table {
        let header = [
            "lock",
            "shape",
            "overcommit",
            "policy",
            "wait",
            "rounds",
            "acq/s",
            "gap ms",
            "retained",
            "speedup",
            "taken",
        ];
        let mut table = Table::new(&header, 5);
        for point in self.measured() {
            let gap = |r: &SessionResult| Some(largest(r, |lock| lock.longest_gap_ns as f64)? / 1e6);
            let retained = self.retained(point);
            let median = |found: Option<Ratio>| or_dash(found.map(|found| found.median), ratio);
            table.row(names(point).into_iter().chain([
                point.wait.to_string(),
                rounds_cell(retained, self.rounds.count()),
                or_dash(self.rounds.median(point, throughput), figure),
                or_dash(self.rounds.median(point, gap), figure),
                median(retained),
                median(self.speedup(point)),
                taken(self.rounds.disturbance(point)),
            ]));
        }
        table
    }

    fn table(&self, columns: &[Column]) -> Table {
        let names_of = ["lock", "shape", "overcommit", "policy"];
        let header: Vec<_> = names_of.into_iter().chain(columns.iter().map(|column| column.0)).collect();
        let mut table = Table::new(&header, 4);
        for point in self.measured() {
            let cell = |(_, figure, format): &Column| or_dash(self.rounds.median(point, figure), *format);
            table.row(names(point).into_iter().chain(columns.iter().map(cell)));
        }
        table
    }

    /// Points whose policy was refused decisions, or gave up.
    fn warnings(&self) -> impl Iterator<Item = String> {
        self.measured().filter_map(|point| {
            let refused = |s: &SchedFigures| Some(s.refused.total() as f64);
            let refused = self.rounds.median(point, |result| sched(result, refused));
            let refused = refused.filter(|refused| *refused > 0.0);
            let refused = refused.map(|refused| format!("{} decisions refused", figure(refused)));
            let ended = self.stop_reason(point);
            let parts: Vec<_> = refused.into_iter().chain(ended.map(|why| format!("ended: {why}"))).collect();
            (!parts.is_empty()).then(|| format!("{point}: {}", parts.join("; ")))
        })
    }

    fn sanity(&self) -> impl Iterator<Item = String> {
        let retained = |point: &PolicyPoint| {
            let retained = self.retained(point)?;
            Some(Retained {
                policy: point.policy.to_string(),
                lock: point.lock,
                shape: point.shape,
                overcommit: point.overcommit,
                share: retained.median,
                is_disturbed: retained.rounds == 0,
            })
        };
        // The model is of waiters that do not stop spinning by themselves.
        let spins = |point: &&PolicyPoint| matches!(point.wait.wait, Wait::Spin | Wait::Yield);
        let points: Vec<_> = self.points.iter().filter(spins).filter_map(retained).collect();
        sanity(&points).into_iter().map(|verdict| verdict.to_string())
    }
}

fn names(point: &PolicyPoint) -> [String; 4] {
    [
        point.lock.to_string(),
        point.shape.to_string(),
        format!("{}x", point.overcommit),
        point.policy.to_string(),
    ]
}

impl BenchReport for PoliciesBench {
    fn was_interrupted(&self) -> bool {
        self.rounds.interrupted
    }

    fn status(&self) -> u8 {
        match self.points.iter().find_map(|point| self.stop_reason(point)) {
            Some(_) if !self.rounds.interrupted => Outcome::Stopped.status(),
            _ => interrupted_status(self.rounds.interrupted),
        }
    }
}

impl Display for PoliciesBench {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rounds = self.rounds.count();
        write!(f, "{}", self.rounds.interruption())?;
        let Some(result) = self.rounds.first() else { return Ok(()) };
        let (Some(guest), Some(first)) = (result.guests.first(), self.points.first()) else { return Ok(()) };
        let Workload { section_ns, section_spread, think_ns, think_spread, duration_ms, .. } =
            guest.workload.unwrap_or_default();
        let mechanism =
            result.sched.as_ref().map_or_else(|| "none".to_owned(), |sched| sched.mechanism.to_string());
        writeln!(
            f,
            "{}, CPUs {}, publisher {}, mechanism {mechanism};\n{section_ns} ns ({section_spread}) in the lock, \
             {think_ns} ns ({think_spread}) between; {duration_ms} ms a point, median of {rounds} rounds, \
             {:.0} s in all\n",
            HostLine(&guest.host),
            guest.guest.cpus,
            self.publisher,
            self.took.as_secs_f64(),
        )?;
        writeln!(f, "{}", self.throughput_table())?;
        writeln!(
            f,
            "retained: relative to the same lock and policy at {}x. speedup: relative to {}.\n\
             Both compare within undisturbed rounds. gap: longest time without any acquisition.\n\
             wide: one guest. narrow: as many guests as the overcommit, each with one vCPU per CPU.\n{TAKEN}",
            first.overcommit, first.policy
        )?;
        writeln!(f, "{}", self.table(&WAITS))?;
        writeln!(
            f,
            "holder, next: preemptions of the holder, and of the vCPU that the lock is passed to.\n"
        )?;
        writeln!(f, "{}", self.table(&SCHEDULE))?;
        self.warnings().try_for_each(|line| writeln!(f, "{line}"))?;
        let judged: Vec<_> = self.sanity().collect();
        if !judged.is_empty() {
            writeln!(f, "Beside the two-line model (k vCPUs per CPU):")?;
        }
        judged.iter().try_for_each(|line| writeln!(f, "  {line}"))
    }
}
