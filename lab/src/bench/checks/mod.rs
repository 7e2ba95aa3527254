//! `bench checks`: what each form of `vcpu_is_preempted()` costs, and whether it matters.
//!
//! For each form it disassembles the check and its callers, times a call and a turn of the callers'
//! loops on a vCPU, and measures the throughput of locks whose waiters use it.

pub mod code;

use std::fmt::{self, Display};

use clap::Args;
use protocol::payload::params::{Check, Job, Lock, Wait, Workload};
use serde::Serialize;

use self::code::{FormCode, FunctionCode};
use super::locks::{self, LockRounds, throughput};
use super::{BenchArgs, BenchReport, INTERRUPTED, RoundArgs, TAKEN, ratio_cells};
use crate::error::Error;
use crate::publisher::ChosenPublisher;
use crate::render::HostLine;
use crate::results::{CheckFigures, RunResult};
use crate::runner::{Experiment, Point, Rounds, WaitMode};
use crate::table::{Table, figure, fixed, or_dash, taken};
use host::facts::HostFacts;
use steal_time::publisher::{PublisherChoice, PublisherKind};

/// Locks of three kinds: waiters read the holder's byte, spinners queue, Linux' writers.
const LOCKS: [Lock; 3] = [Lock::Tas, Lock::Mutex, Lock::Rwsem];
const OVERCOMMITS: [usize; 2] = [1, 4];

/// The form that landed in Linux; others are compared with it.
const BASE: Check = Check::Save0;

/// `vmm-lab bench checks`.
#[derive(Debug, Args)]
pub struct ChecksArgs {
    /// Options of all benches.
    #[command(flatten)]
    pub common: BenchArgs,
    /// Rounds and windows.
    #[command(flatten)]
    pub rounds: RoundArgs,
}

/// Results of all parts.
#[derive(Debug, Serialize)]
pub(super) struct ChecksBench {
    pub(super) publisher: ChosenPublisher,
    pub(super) code: Vec<(&'static str, FormCode)>,
    pub(super) timed: Rounds<&'static str, RunResult>,
    pub(super) locks: LockRounds,
}

/// The only point of the timing rounds: each guest times all forms.
pub(super) const TIMING: &str = "time of all forms";

pub(super) fn run(args: &ChecksArgs) -> Result<ChecksBench, Error> {
    let publisher = ChosenPublisher::settle(PublisherChoice::Auto)?;
    publisher.announce();
    let code = Check::ALL.iter().map(|form| Ok((form.name(), code::of(*form)?)));
    let code = code.collect::<Result<Vec<_>, Error>>()?;
    let workload = Workload { job: Job::Checks, ..Workload::DEFAULT };
    let experiment = Experiment { host: HostFacts::probe(), cpus: args.common.usable_cpus()?, workload };
    let runner = args.rounds.runner(&args.common);
    let timed = runner.measure(&[TIMING], |_| experiment.run(1, PublisherKind::Off, workload))?;
    let points: Vec<Point> = points(publisher.kind).collect();
    let locks = locks::measure(&points, Workload::DEFAULT, args.rounds, &args.common)?;
    Ok(ChecksBench { publisher, code, timed, locks })
}

pub(super) fn points(publisher: PublisherKind) -> impl Iterator<Item = Point> {
    OVERCOMMITS.into_iter().flat_map(move |overcommit| {
        LOCKS.into_iter().flat_map(move |lock| {
            Check::ALL.iter().map(move |check| point(lock, *check, publisher, overcommit))
        })
    })
}

fn point(lock: Lock, check: Check, publisher: PublisherKind, overcommit: usize) -> Point {
    Point { lock, wait: WaitMode::new(Wait::Preempted), check, publisher, overcommit }
}

impl ChecksBench {
    /// The median over rounds of a figure of the form at `index`; the last index is no form.
    fn time(&self, index: usize, pick: fn(&CheckFigures) -> f64) -> String {
        let figure = |run: &RunResult| Some(pick(run.window.as_ref()?.checks.get(index)?));
        or_dash(self.timed.median(&TIMING, figure), |ns| fixed(ns, 2))
    }

    /// The CPU time that others took from the guest that times all forms.
    fn timed_taken(&self) -> String {
        taken(self.timed.disturbance(&TIMING))
    }

    fn check_table(&self) -> Table {
        let header =
            ["form", "bytes", "ns a call", "in a chain", "spin: bytes", "pushes", "spills", "ns a spin"];
        let mut table = Table::new(&header, 1);
        let call = |index| [self.time(index, |cost| cost.call_ns), self.time(index, |cost| cost.chain_ns)];
        for (index, (form, code)) in self.code.iter().enumerate() {
            let bytes = code.check.map_or_else(|| "-".to_owned(), |check| check.bytes.to_string());
            let cells = [(*form).to_owned(), bytes].into_iter().chain(call(index));
            table.row(cells.chain(caller(code.spin)).chain([self.time(index, |cost| cost.spin_ns)]));
        }
        table.row(["none".to_owned(), String::new()].into_iter().chain(call(self.code.len())));
        table
    }

    fn folded_table(&self) -> Table {
        let mut table = Table::new(&["form", "folded: bytes", "pushes", "spills", "ns a spin"], 1);
        for (index, (form, code)) in self.code.iter().enumerate() {
            let cells = [(*form).to_owned()].into_iter().chain(caller(code.folded));
            table.row(cells.chain([self.time(index, |cost| cost.folded_ns)]));
        }
        table
    }

    fn lock_table(&self) -> Table {
        let header = [
            "lock",
            "form",
            "overcommit",
            "acq/s",
            "over save0",
            "(min",
            "max)",
            "preempted seen/s",
            "taken",
        ];
        let mut table = Table::new(&header, 3);
        for point in points(self.publisher.kind) {
            let first = [
                point.lock.to_string(),
                point.check.to_string(),
                format!("{}x", point.overcommit),
                or_dash(self.locks.median(&point, throughput), figure),
            ];
            let ratio = self.locks.ratio(&point, &Point { check: BASE, ..point }, throughput);
            let seen = or_dash(locks::rate(&self.locks, point, |lock| lock.preempted_seen), figure);
            let taken = taken(self.locks.disturbance(&point));
            table.row(first.into_iter().chain(ratio_cells(ratio)).chain([seen, taken]));
        }
        table
    }
}

fn caller(code: FunctionCode) -> [String; 3] {
    [code.bytes.to_string(), code.pushes.to_string(), code.spills.to_string()]
}

impl BenchReport for ChecksBench {
    fn was_interrupted(&self) -> bool {
        self.timed.interrupted || self.locks.interrupted
    }
}

impl Display for ChecksBench {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.was_interrupted() {
            writeln!(f, "{INTERRUPTED}\n")?;
        }
        let Some(first) = self.timed.first() else { return Ok(()) };
        let host = HostLine(&first.host);
        let (cpus, rounds, taken) = (&first.guest.cpus, self.timed.count(), self.timed_taken());
        writeln!(f, "{host}, CPUs {cpus}; medians of {rounds} rounds; taken {taken}\n")?;
        writeln!(f, "{}", self.check_table())?;
        writeln!(f, "{}", self.folded_table())?;
        writeln!(
            f,
            "bytes: of the check itself. spin, folded: a loop that waits for a lock's owner, compiled alone\n\
             and into a larger function. none: the empty loop that times a call.\n"
        )?;
        writeln!(
            f,
            "Locks whose waiters use the check, publisher {}:\n\n{}",
            self.publisher,
            self.lock_table()
        )?;
        writeln!(f, "over save0: throughput relative to save0, within undisturbed rounds.")?;
        write!(f, "{TAKEN}")
    }
}
