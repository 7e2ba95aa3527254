//! Checks: how cheap can `vcpu_is_preempted()` be, and does it matter?
//!
//! For each form: its code and its callers', as a disassembler reads them from the payload; a call and a turn of its callers'
//! loops, as a vCPU times them; and what is left of that at the end, the throughput of a lock whose waiters use it.

pub mod code;

use std::fmt::{self, Display};

use protocol::payload::params::{Check, Job, Lock, Wait, Workload};
use serde::Serialize;

pub use self::code::CodeError;
use self::code::FormCode;
use super::locks::ratio_cells;
use super::rounds::Rounds;
use super::{Bench, BenchError, median};
use crate::cli::{ChecksArgs, usable_cpus};
use crate::experiment::{Experiment, Point, WaitMode};
use crate::results::{CheckFigures, RunResult};
use crate::table::{Table, figure};
use host::facts::HostFacts;
use steal_time::publisher::PublisherKind;

/// A lock of each kind: one whose waiters ask about its holder, one whose spinners queue, Linux' writers.
const LOCKS: [Lock; 3] = [Lock::Tas, Lock::Mutex, Lock::Rwsem];
const LOADS: [usize; 2] = [1, 4];

/// What others are compared with: what landed.
const BASE: Check = Check::Save0;

/// All that was found.
#[derive(Debug, Serialize)]
pub(super) struct ChecksBench {
    code: Vec<(&'static str, FormCode)>,
    timed: Vec<RunResult>,
    locks: Rounds,
}

pub(super) fn run(args: &ChecksArgs) -> Result<ChecksBench, BenchError> {
    let code = Check::ALL.iter().map(|form| Ok((form.name(), code::of(*form)?)));
    let code = code.collect::<Result<Vec<_>, CodeError>>()?;
    let cpus = usable_cpus(args.common.cpus.as_ref())?;
    let workload = Workload { job: Job::Checks, ..Workload::DEFAULT };
    let experiment = Experiment { host: HostFacts::probe(), cpus, workload };
    let timed = (0..args.rounds.rounds).map(|_| experiment.run(1, PublisherKind::Off, workload));
    let timed = timed.collect::<Result<Vec<_>, _>>()?;
    let points: Vec<Point> = points().collect();
    let locks = Rounds::measure(Workload::DEFAULT, &points, args.rounds, &args.common)?;
    Ok(ChecksBench { code, timed, locks })
}

fn points() -> impl Iterator<Item = Point> {
    LOADS.into_iter().flat_map(|overcommit| {
        LOCKS
            .into_iter()
            .flat_map(move |lock| Check::ALL.iter().map(move |check| point(lock, *check, overcommit)))
    })
}

fn point(lock: Lock, check: Check, overcommit: usize) -> Point {
    Point { lock, wait: WaitMode::new(Wait::Preempted), check, publisher: PublisherKind::Bpf, overcommit }
}

impl ChecksBench {
    /// The median over rounds of a figure of the form in place `form`, or of none at all, the last one.
    fn timed(&self, form: usize, pick: fn(&CheckFigures) -> f64) -> f64 {
        let figure = |run: &RunResult| Some(pick(run.window.as_ref()?.checks.get(form)?));
        median(self.timed.iter().filter_map(figure)).unwrap_or(0.0)
    }

    fn code_table(&self) -> Table {
        let heads = [
            "form",
            "bytes",
            "ns a call",
            "in a chain",
            "spin: bytes",
            "pushes",
            "spills",
            "ns a turn",
            "folded: bytes",
            "pushes",
            "spills",
            "ns a turn",
        ];
        let mut table = Table::new(&heads, 1);
        for (place, (form, code)) in self.code.iter().enumerate() {
            let time = |pick| format!("{:.2}", self.timed(place, pick));
            let caller = |code: code::FunctionCode| {
                [code.bytes.to_string(), code.pushes.to_string(), code.spills.to_string()]
            };
            let first = [
                (*form).to_owned(),
                code.check.map_or_else(|| "-".to_owned(), |check| check.bytes.to_string()),
                time(|cost| cost.call_ns),
                time(|cost| cost.chain_ns),
            ];
            let spin = caller(code.spin).into_iter().chain([time(|cost| cost.spin_ns)]);
            let folded = caller(code.folded).into_iter().chain([time(|cost| cost.folded_ns)]);
            table.row(first.into_iter().chain(spin).chain(folded));
        }
        let nothing = self.code.len();
        let time = |pick| format!("{:.2}", self.timed(nothing, pick));
        table.row(["none".to_owned(), String::new(), time(|cost| cost.call_ns), time(|cost| cost.chain_ns)]);
        table
    }

    fn lock_table(&self) -> Table {
        let heads = ["lock", "form", "load", "acq/s", "over save0", "(least", "most)", "byte/s"];
        let mut table = Table::new(&heads, 3);
        for point in points() {
            let base = Point { check: BASE, ..point };
            let first = [
                point.lock.to_string(),
                point.check.to_string(),
                format!("{}x", point.overcommit),
                figure(self.locks.figure(point, |lock| lock.per_second)),
            ];
            let seen = figure(self.locks.rate(point, |lock| lock.preempted_seen));
            table.row(first.into_iter().chain(ratio_cells(self.locks.ratio(point, base))).chain([seen]));
        }
        table
    }
}

impl Bench for ChecksBench {
    fn was_interrupted(&self) -> bool {
        self.locks.interrupted
    }
}

impl Display for ChecksBench {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(first) = self.timed.first() else { return Ok(()) };
        writeln!(
            f,
            "{} (KVM on {}, Linux {}), CPUs {}; medians of {} rounds\n",
            first.host.processor,
            first.host.kvm_backend,
            first.host.kernel,
            first.guest.cpus,
            self.timed.len(),
        )?;
        writeln!(f, "{}", self.code_table())?;
        writeln!(
            f,
            "bytes: of the check itself. spin, folded: an owner's spinner around it, compiled alone and into a larger \
             function. none: what is left of the loop that times a call.\n"
        )?;
        writeln!(f, "Locks whose waiters use it, publisher bpf:\n\n{}", self.lock_table())?;
        writeln!(f, "over save0: throughput over that with what landed, in the same round, of clean rounds")
    }
}
