//! What all benches print and write of results that were never measured: disturbed ones, those of
//! an interrupted bench, empty windows, and figures that are not finite.

use std::fmt::Display;
use std::time::Duration;

use protocol::payload::params::{Check, Job, Lock, Wait};
use serde::Serialize;
use serde_json::Value;

use super::{checks, locks, policies, preempted, sched, startup, switch};
use crate::accuracy::{Accuracy, Migration, ObservedCounts, OracleReport, Row};
use crate::demo::{self, Demo};
use crate::error::Error;
use crate::oracle::Judgement;
use crate::publisher::ChosenPublisher;
use crate::render::Summary;
use crate::render_sched::SessionSummary;
use crate::results::{RunResult, testing};
use crate::runner::{Measurement, Point, Rounds, Runner, WaitMode};
use crate::sched::mechanism::MechanismKind;
use host::disturbance::{Disturbance, Verdict};
use steal_time::publisher::PublisherKind;

const LENGTH: Duration = Duration::from_millis(500);

/// A bench as its tables and its document; `null` for a bench without one.
struct Shown {
    name: &'static str,
    tables: String,
    document: Value,
    /// What the rows of all points but the first begin with.
    second_row: &'static str,
}

fn shown(name: &'static str, second_row: &'static str, bench: &(impl Display + Serialize)) -> Shown {
    let document = serde_json::to_value(bench).unwrap();
    Shown { name, tables: bench.to_string(), document, second_row }
}

/// Results that all benches get in place of measurements.
#[derive(Clone, Copy)]
struct Scene {
    /// Number of points that are measured before Ctrl-C.
    points: usize,
    /// The result of a guest that does a job.
    run: fn(Job, Disturbance) -> RunResult,
    /// What was taken from each measurement.
    disturbance: Disturbance,
    /// The figures of benches without guests.
    value: f64,
}

impl Scene {
    fn rounds<P: Clone + Display + PartialEq, R: Measurement>(
        self,
        points: &[P],
        result: impl Fn() -> R,
    ) -> Rounds<P, R> {
        let runner = Runner { rounds: 1, warmup_rounds: 0, retries: 2, quiet: true };
        let end = points.get(self.points);
        let rounds = runner
            .measure(points, |point| if Some(point) == end { Err(Error::Interrupted) } else { Ok(result()) });
        rounds.unwrap()
    }

    fn run(self, job: Job) -> RunResult {
        (self.run)(job, self.disturbance)
    }

    fn benches(self) -> Vec<Shown> {
        let contend = || self.run(Job::Contend);
        let session = |job| testing::session(self.run(job));
        let publisher = PublisherKind::Off;
        let chosen = || ChosenPublisher::requested(publisher);

        let wait = WaitMode::new(Wait::Spin);
        let points = [Lock::Tas, Lock::Mutex].map(|lock| Point {
            lock,
            wait,
            check: Check::Save0,
            publisher,
            overcommit: 1,
        });
        let locks = locks::LocksBench {
            publisher: chosen(),
            rounds: self.rounds(&points, contend),
            points: points.to_vec(),
        };

        let points = [Lock::Tas, Lock::Mutex].map(|lock| policies::PolicyPoint {
            policy: "rr:slice=3ms".parse().unwrap(),
            lock,
            wait,
            shape: policies::Shape::Wide,
            overcommit: 1,
        });
        let policies = policies::PoliciesBench {
            publisher: chosen(),
            rounds: self.rounds(&points, || session(Job::Contend)),
            points: points.to_vec(),
            took: Duration::ZERO,
        };

        let point = sched::Point { mechanism: Some(MechanismKind::Class), slice_ms: 3, overcommit: 2 };
        let points = [sched::FREE, point];
        let sched = sched::SchedBench {
            rounds: self.rounds(&points, || session(Job::Watch)),
            points: points.to_vec(),
        };

        let points = [1, 2].map(|cpus| preempted::Point { publisher, cpus });
        let preempted = preempted::PreemptedBench {
            runs: self.rounds(&points, || self.run(Job::Watch)),
            refused: Vec::new(),
        };

        let points: Vec<_> = checks::points(publisher).collect();
        let checks = checks::ChecksBench {
            publisher: chosen(),
            code: Vec::new(),
            timed: self.rounds(&[checks::TIMING], || self.run(Job::Checks)),
            locks: self.rounds(&points, contend),
        };

        let sample =
            || switch::Sample { wall_ns: self.value, program_ns: None, disturbance: self.disturbance };
        let switch =
            switch::SwitchBench { host: testing::host(), rounds: self.rounds(&switch::Setting::ALL, sample) };

        let points = demo::points([publisher].into_iter());
        let demo = Demo { schema: 0, publisher: chosen(), runs: self.rounds(&points, contend) };

        let startup = self.startup();
        vec![
            shown("locks", "mutex", &locks),
            shown("policies", "mutex", &policies),
            shown("sched", "class", &sched),
            shown("preempted", "off        2", &preempted),
            shown("checks", "mutex", &checks),
            shown("switch", "empty program", &switch),
            shown("demo", "off        mutex", &demo),
            Shown {
                name: "startup",
                tables: startup.to_string(),
                document: Value::Null,
                second_row: "the second",
            },
        ]
    }

    fn startup(self) -> startup::StartupBench {
        let contender = |name| startup::Contender { name, command: Vec::new(), is_ours: true };
        let contenders = ["the first", "the second"].map(contender);
        let sample = || startup::Sample {
            wall: Duration::ZERO,
            peak_kib: 1,
            to_main: None,
            to_first_instruction: None,
            disturbance: self.disturbance,
        };
        startup::StartupBench {
            host: testing::host(),
            rounds: self.rounds(&contenders, sample),
            contenders: contenders.to_vec(),
            vcpus: 1,
            missing: Vec::new(),
        }
    }

    /// What is measured without rounds: one guest, a session, and accuracy.
    fn others(self) -> Vec<Shown> {
        let run = self.run(Job::Contend);
        let session = testing::session(self.run(Job::Watch));
        vec![
            Shown {
                name: "run",
                tables: Summary(&run).to_string(),
                document: serde_json::to_value(&run).unwrap(),
                second_row: "-",
            },
            Shown {
                name: "session",
                tables: SessionSummary(&session).to_string(),
                document: serde_json::to_value(&session).unwrap(),
                second_row: "-",
            },
            shown("accuracy", "-", &self.accuracy()),
        ]
    }

    fn accuracy(self) -> Accuracy {
        let (verdict, disturbance) = (self.disturbance.verdict(), self.disturbance);
        let oracle = OracleReport {
            verdict,
            disturbance,
            preempted: Judgement::default(),
            counts: ObservedCounts::default(),
            out_latency_ns: [None; 4],
            in_latency_ns: [None; 4],
        };
        let migration = Migration { verdict, disturbance, migrations: 0, counts: ObservedCounts::default() };
        let row =
            Row { publisher: PublisherKind::Bpf, faults: None, oracle: Ok(oracle), migration: Ok(migration) };
        Accuracy { schema: 0, host: testing::host(), rows: vec![row], interrupted: false }
    }

    fn all(self) -> impl Iterator<Item = Shown> {
        self.benches().into_iter().chain(self.others())
    }
}

fn with_figures(job: Job, disturbance: Disturbance) -> RunResult {
    testing::run_with_figures(job, disturbance, 1000.0)
}

/// Half a second from which an outer hypervisor took `stolen_ms`.
fn scene(stolen_ms: u64) -> Scene {
    let disturbance = testing::stolen(LENGTH, Duration::from_millis(stolen_ms));
    Scene { points: usize::MAX, run: with_figures, disturbance, value: 1000.0 }
}

/// The values of `document` under the key `verdict`, and those under the key `steal_cpus`.
fn verdicts(document: &Value) -> (Vec<&str>, Vec<Option<f64>>) {
    let values: Vec<&Value> = match document {
        Value::Object(fields) => fields.values().collect(),
        Value::Array(values) => values.iter().collect(),
        _ => Vec::new(),
    };
    let mut found = (Vec::new(), Vec::new());
    found.0.extend(document.get("verdict").and_then(Value::as_str));
    found.1.extend(document.get("steal_cpus").map(Value::as_f64));
    for (words, amounts) in values.into_iter().map(verdicts) {
        found.0.extend(words);
        found.1.extend(amounts);
    }
    found
}

#[test]
fn disturbed_row_is_never_known_in_any_table_or_document() {
    assert_eq!(scene(60).disturbance.verdict(), Verdict::Disturbed);
    for Shown { name, tables, document, .. } in scene(60).all() {
        assert!(tables.contains("disturbed"), "{name}: {tables}");
        let is_known = tables.split_whitespace().any(|word| word == "known");
        assert!(!is_known, "{name}: {tables}");
        let rows = tables.lines().filter(|line| line.ends_with("6.0 % disturbed")).count();
        assert!(rows > 0 || matches!(name, "run" | "session" | "accuracy"), "{name}: {tables}");
        let (words, amounts) = verdicts(&document);
        assert!(name == "startup" || !words.is_empty(), "{name}: {document}");
        assert!(words.iter().all(|word| *word == "disturbed"), "{name}: {words:?}");
        assert!(amounts.iter().all(|amount| *amount == Some(0.12)), "{name}: {amounts:?}");
    }
}

#[test]
fn undisturbed_row_shows_what_was_taken_and_is_known() {
    for Shown { name, tables, document, .. } in scene(0).all() {
        let legend = tables.matches("disturbed: it was too much").count();
        // The caption of ratios speaks of undisturbed rounds
        let others = tables.matches("disturbed").count() - tables.matches("undisturbed").count();
        assert_eq!(others, legend, "{name}: {tables}");
        assert!(verdicts(&document).0.iter().all(|word| *word == "known"), "{name}: {document}");
    }
}

#[test]
fn point_that_was_not_measured_is_a_dash_in_each_table() {
    for Shown { name, tables, second_row, .. } in (Scene { points: 1, ..scene(0) }).benches() {
        for row in tables.lines().filter(|line| line.starts_with(second_row)) {
            let zeros = row.split_whitespace().any(|cell| cell.trim_matches(['0', '.']).is_empty());
            assert!(!zeros && row.contains(" -"), "{name}: {row}");
        }
    }
    for Shown { name, tables, document, .. } in (Scene { points: 0, ..scene(0) }).benches() {
        let rows: Vec<_> = tables.lines().filter(|line| !line.starts_with("Interrupted")).collect();
        let zeros = rows.iter().any(|row| row.ends_with(" 0") || row.contains(" 0 ") || row.contains("0.0"));
        assert!(!zeros, "{name}: {tables}");
        assert!(document.is_null() || document.to_string().contains("true"), "{name} is interrupted");
    }
}

/// Asserts that all figures are short, and none is a number that does not exist.
fn assert_readable(Shown { name, tables, document, .. }: &Shown) {
    for word in tables.split_whitespace() {
        let digits = word.chars().filter(char::is_ascii_digit).count();
        let bare = word.trim_matches(|c: char| !c.is_alphabetic()).to_lowercase();
        assert!(digits < 12 && bare != "nan" && bare != "inf", "{name}: {word:?} in\n{tables}");
    }
    let is_huge = |number: &str| number.parse::<f64>().is_ok_and(|number| number.abs() > 1e30);
    let text = document.to_string();
    assert!(!text.split([',', ':', '}', ']']).any(is_huge), "{name}: {text}");
}

#[test]
fn window_without_length_has_no_rate_in_any_table_or_document() {
    let disturbance = testing::stolen(Duration::ZERO, Duration::from_millis(10));
    let empty = Scene { run: testing::run, disturbance, ..scene(0) };
    for shown in empty.all() {
        assert_readable(&shown);
        let name = shown.name;
        if !matches!(name, "startup" | "switch" | "accuracy") {
            let text = shown.document.to_string();
            assert!(text.contains("\"steal_cpus\":null"), "{name}: {text}");
        }
    }
    let locks = empty.benches().remove(0);
    let first = locks.tables.lines().find(|line| line.starts_with("tas")).unwrap();
    assert_eq!(first.split_whitespace().nth(4), Some("-"), "acquisitions per second: {first}");
}

#[test]
fn figures_that_are_not_finite_are_dashes_and_null() {
    let runs: [fn(Job, Disturbance) -> RunResult; 4] = [
        |job, disturbance| testing::run_with_figures(job, disturbance, f64::NAN),
        |job, disturbance| testing::run_with_figures(job, disturbance, f64::INFINITY),
        |job, disturbance| testing::run_with_figures(job, disturbance, f64::NEG_INFINITY),
        |job, disturbance| testing::run_with_figures(job, disturbance, 0.0),
    ];
    for (run, value) in runs.into_iter().zip([f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0]) {
        (Scene { run, value, ..scene(0) }).all().for_each(|shown| assert_readable(&shown));
    }
}
