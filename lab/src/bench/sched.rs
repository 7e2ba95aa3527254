//! Scheduling: how far what happens is what was planned, by each mechanism, in turns of so many milliseconds.
//!
//! The guest does nothing but count, so that its count is the time it had: what a guest of one vCPU a CPU counts when the host is
//! left alone is all there is. Beside it stands what the kernel's own record of switches says, and how long decisions took. `off`
//! publishes: what publishing costs is another question.

use std::fmt::{self, Display};
use std::io;
use std::time::{Duration, Instant};

use protocol::payload::params::{Job, Workload};
use serde::Serialize;

use super::{Bench, BenchError, median};
use crate::cli::{SchedBenchArgs, usable_cpus};
use crate::demo::progress_bar;
use crate::guest::LabConfig;
use crate::policy::catalogue::PolicyChoice;
use crate::results::{Quantiles, SchedFigures};
use crate::sched::SchedConfig;
use crate::sched::mechanism::{MechanismChoice, MechanismKind};
use crate::session::{self, SessionConfig, SessionResult};
use crate::table::{Table, figure};
use host::facts::HostFacts;

const WARMUP_MS: u32 = 150;
const PATIENCE: Duration = Duration::from_secs(30);

/// Takes one of the quantiles.
type At = fn(Quantiles) -> u64;

/// A point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Point {
    /// By which mechanism; `None` for the host left alone, with a vCPU a CPU.
    mechanism: Option<MechanismKind>,
    /// The length of a turn (ms).
    slice_ms: u32,
    /// vCPUs a CPU.
    load: u16,
}

/// All rounds.
#[derive(Debug, Serialize)]
pub(super) struct SchedBench {
    rounds: Vec<Vec<(Point, SessionResult)>>,
    #[serde(skip)]
    points: Vec<Point>,
    interrupted: bool,
}

const FREE: Point = Point { mechanism: None, slice_ms: 0, load: 1 };

pub(super) fn run(args: &SchedBenchArgs) -> Result<SchedBench, BenchError> {
    let cpus = usable_cpus(args.common.cpus.as_ref())?;
    let mut points = vec![FREE];
    for kind in [MechanismKind::Class, MechanismKind::Deschedule] {
        for load in args.loads.iter().copied() {
            let point = |slice_ms| Point { mechanism: Some(kind), slice_ms, load };
            points.extend(args.quanta.iter().copied().map(point));
        }
    }
    let bar = progress_bar(points.len() * usize::from(args.rounds.rounds), args.common.quiet);
    let mut all = SchedBench { rounds: Vec::new(), points, interrupted: false };
    let host = HostFacts::probe();
    'rounds: for _ in 0..args.rounds.rounds {
        let mut runs = Vec::new();
        for point in &all.points {
            bar.set_message(Name(*point).to_string());
            let workload = Workload {
                job: Job::Watch,
                warmup_ms: WARMUP_MS,
                duration_ms: args.rounds.duration_ms,
                ..Workload::DEFAULT
            };
            let timeout = Duration::from_millis(args.rounds.duration_ms.into()) + PATIENCE;
            let vcpus = cpus.count() * usize::from(point.load);
            let words = workload.to_string();
            let guest = LabConfig::embedded(vcpus, cpus.clone(), args.publisher, words, timeout);
            let config =
                SessionConfig { guest, guests: 1, sched: Some(sched(*point)?), cpu_hog: args.cpu_hog };
            let result = session::run(&config, io::sink, Instant::now())?.result(&host, config.cpu_hog);
            match result.guests.first().map(|guest| guest.outcome.kind) {
                Some("reset") => {}
                Some("interrupted") => {
                    all.interrupted = true;
                    all.rounds.push(runs);
                    break 'rounds;
                }
                how => {
                    return Err(BenchError::Point(format!(
                        "{}: {}",
                        Name(*point),
                        how.unwrap_or("no guest")
                    )));
                }
            }
            runs.push((*point, result));
            bar.inc(1);
        }
        all.rounds.push(runs);
    }
    bar.finish_and_clear();
    Ok(all)
}

fn sched(point: Point) -> Result<SchedConfig, BenchError> {
    let text = match point.mechanism {
        None => "host:affinity=home".to_owned(),
        Some(_) => format!("rr:slice={}ms", point.slice_ms),
    };
    let policy: PolicyChoice = text.parse().map_err(session::SessionError::from_policy)?;
    let mechanism = point.mechanism.map_or(MechanismChoice::Auto, MechanismChoice::Only);
    Ok(SchedConfig { policy, mechanism, seed: 1, starvation: PATIENCE, traces: false })
}

struct Name(Point);

impl Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.mechanism {
            None => f.write_str("free"),
            Some(kind) => write!(f, "{kind}, {} ms, {}x", self.0.slice_ms, self.0.load),
        }
    }
}

/// What the guest counted, each second.
fn progress(result: &SessionResult) -> Option<f64> {
    let window = result.guests.first()?.window.as_ref()?;
    Some(window.byte?.own_samples as f64 / (window.length_ns as f64).max(1.0))
}

impl SchedBench {
    /// The median over rounds of what `figure` gives of a point and of the free one in the same round.
    fn median(
        &self,
        point: Point,
        figure: impl Fn(&SessionResult, &SessionResult) -> Option<f64>,
    ) -> Option<f64> {
        let of = |round: &Vec<(Point, SessionResult)>| {
            let find = |wanted| round.iter().find(|(point, _)| *point == wanted).map(|(_, result)| result);
            figure(find(point)?, find(FREE)?)
        };
        median(self.rounds.iter().filter_map(of))
    }

    fn of_steering(&self, point: Point, figure: impl Fn(&SchedFigures) -> Option<f64>) -> Option<f64> {
        self.median(point, |result, _| figure(result.sched.as_ref()?))
    }

    fn table(&self) -> Table {
        let heads = [
            "mechanism",
            "turn ms",
            "load",
            "decisions",
            "guest",
            "fidelity",
            "in turn",
            "late p50 us",
            "p99",
            "on p50 us",
            "p99",
            "most",
            "off p50 us",
            "byte p50 us",
            "p99",
            "missed",
            "gaps",
            "of them fair server",
        ];
        let mut table = Table::new(&heads, 1);
        for point in self.points.iter().copied() {
            let us = |pick: fn(&SchedFigures) -> Option<Quantiles>, at: At| {
                let value = self.of_steering(point, |s| {
                    pick(s).filter(|times| times.count > 0).map(|times| at(times) as f64 / 1e3)
                });
                value.map_or_else(|| "-".to_owned(), |us| format!("{us:.1}"))
            };
            let share =
                |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"));
            let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), figure);
            let guest = self.median(point, |here, free| Some(progress(here)? / progress(free)?));
            let fidelity =
                self.of_steering(point, |s| Some(s.fact.as_ref().filter(|_| s.decisions > 0)?.fidelity));
            let (p50, p99): (At, At) = (|times| times.p50_ns, |times| times.p99_ns);
            let on = |s: &SchedFigures| s.fact.as_ref().map(|fact| fact.on);
            let gaps = |named: bool| {
                self.of_steering(point, |s| {
                    let gaps = s.fact.as_ref()?.gaps.iter();
                    Some(gaps.filter(|gap| !named || gap.name == "fair server").count() as f64)
                })
            };
            table.row([
                point.mechanism.map_or_else(|| "free".to_owned(), |kind| kind.to_string()),
                if point.slice_ms == 0 { "-".to_owned() } else { point.slice_ms.to_string() },
                format!("{}x", point.load),
                number(self.of_steering(point, |s| Some(s.decisions as f64))),
                share(guest),
                share(fidelity),
                share(guest.zip(fidelity).map(|(guest, fidelity)| guest * fidelity)),
                us(|s| Some(s.late), p50),
                us(|s| Some(s.late), p99),
                us(on, p50),
                us(on, p99),
                us(on, |times| times.most_ns),
                us(|s| s.fact.as_ref().map(|fact| fact.off), p50),
                us(|s| Some(s.byte), p50),
                us(|s| Some(s.byte), p99),
                number(self.of_steering(point, |s| Some(s.fact.as_ref()?.missed as f64))),
                number(gaps(false)),
                number(gaps(true)),
            ]);
        }
        table
    }
}

impl Bench for SchedBench {
    fn was_interrupted(&self) -> bool {
        self.interrupted
    }
}

impl Display for SchedBench {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.interrupted {
            writeln!(f, "Interrupted in round {}\n", self.rounds.len())?;
        }
        let Some(first) = self.rounds.iter().flatten().next().map(|(_, result)| result) else {
            return Ok(());
        };
        let Some(guest) = first.guests.first() else { return Ok(()) };
        let load = first.cpu_hog.map_or_else(|| "nothing".to_owned(), |load| load.to_string());
        writeln!(
            f,
            "{} (KVM on {}, Linux {}), CPUs {}, publisher {}; round robin, {} ms a point, medians of {} rounds; beside it: {load}\n",
            guest.host.processor,
            guest.host.kvm_backend,
            guest.host.kernel,
            guest.guest.cpus,
            guest.publisher.kind,
            guest.workload.unwrap_or_default().duration_ms,
            self.rounds.len(),
        )?;
        writeln!(f, "{}", self.table())?;
        writeln!(
            f,
            "guest: what the guest did, as a share of what it does with a vCPU a CPU and no policy, in the same round. fidelity: \
             what part of\ntheir CPU time vCPUs ran in their turns, by the kernel's record of switches. in turn: both. late: \
             from the end of a turn to the\ndecision; on, off: from the decision to the new thread having the CPU, the old one \
             having lost it; byte: from the order to the byte,\nwhere this monitor writes it. gaps: 20 ms and more, in one piece \
             or in several, in which nobody ran who should have."
        )
    }
}
