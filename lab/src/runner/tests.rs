//! Unit tests of rounds.

use std::time::Duration;

use serde::Serialize;

use super::*;
use host::stats::CpuStats;

/// A value, and how much an outer hypervisor took in half a second (ms).
#[derive(Serialize)]
struct Sample {
    value: f64,
    stolen_ms: u64,
}

impl Measurement for Sample {
    fn disturbance(&self) -> Disturbance {
        let stolen = Duration::from_millis(self.stolen_ms);
        let used = CpuStats { stolen, ..CpuStats::default() };
        Disturbance::new(Duration::from_millis(500), 2, Some(used))
    }
}

const ROUNDS: Runner = Runner { rounds: 3, warmup_rounds: 0, retries: 2, quiet: true };

fn clean(value: f64) -> Sample {
    Sample { value, stolen_ms: 0 }
}

#[test]
fn disturbed_point_is_measured_again_up_to_the_number_of_retries() {
    let mut runs = 0;
    let rounds = ROUNDS.measure(&["a"], |_| {
        runs += 1;
        Ok(Sample { value: f64::from(runs), stolen_ms: if runs == 2 { 0 } else { 100 } })
    });
    // The second run of the first round is undisturbed; the other rounds use all retries.
    assert_eq!(runs, 2 + 3 + 3);
    let rounds = rounds.unwrap();
    assert_eq!(rounds.of(&"a").map(|sample| sample.value).collect::<Vec<_>>(), [2.0, 5.0, 8.0]);
    assert_eq!(rounds.ratio(&"a", &"a", |sample| Some(sample.value)).map(|ratio| ratio.rounds), Some(1));
    assert_eq!(rounds.median(&"a", |sample| Some(sample.value)), Some(2.0), "of the undisturbed round");
    assert_eq!(rounds.disturbance(&"a").map(|taken| taken.verdict()), Some(Verdict::Known));
}

#[test]
fn point_that_is_always_disturbed_keeps_its_figures_and_is_never_known() {
    let rounds = ROUNDS.measure(&["a", "b"], |point| {
        Ok(Sample { value: 4.0, stolen_ms: if *point == "a" { 250 } else { 0 } })
    });
    let rounds = rounds.unwrap();
    assert_eq!(rounds.median(&"a", |sample| Some(sample.value)), Some(4.0));
    let ratio = rounds.ratio(&"a", &"b", |sample| Some(sample.value)).unwrap();
    assert_eq!((ratio.median, ratio.rounds), (1.0, 0));
    let verdict = |point| rounds.disturbance(&point).map(|taken| taken.verdict());
    assert_eq!((verdict("a"), verdict("b")), (Some(Verdict::Disturbed), Some(Verdict::Known)));
    assert_eq!(verdict("c"), None, "not measured");
    let document = serde_json::to_value(&rounds).unwrap();
    assert_eq!(document["verdicts"][0]["point"], "a");
    assert_eq!(document["verdicts"][0]["verdict"], "disturbed");
    assert_eq!(document["verdicts"][0]["steal_cpus"], 0.5);
    assert_eq!(document["verdicts"][1]["verdict"], "known");
}

#[test]
fn point_that_was_disturbed_below_the_resolution_in_each_round_is_judged_by_all() {
    let rounds = ROUNDS.measure(&["a"], |_| Ok(Sample { value: 1.0, stolen_ms: 20 })).unwrap();
    assert!(rounds.of(&"a").all(Measurement::is_known));
    assert_eq!(rounds.disturbance(&"a").map(|taken| taken.verdict()), Some(Verdict::Disturbed));
}

#[test]
fn ratio_compares_within_rounds() {
    let mut factor = 0.0;
    let rounds = ROUNDS.measure(&["base", "double"], |point| {
        factor += 1.0;
        Ok(clean(if *point == "base" { factor } else { 2.0 * (factor - 1.0) }))
    });
    let ratio = rounds.unwrap().ratio(&"double", &"base", |sample| Some(sample.value)).unwrap();
    assert_eq!(ratio, Ratio { median: 2.0, min: 2.0, max: 2.0, rounds: 3 });
}

#[test]
fn interruption_ends_the_rounds_and_keeps_what_was_measured() {
    let mut runs = 0;
    let rounds = ROUNDS.measure(&["a", "b"], |_| {
        runs += 1;
        if runs == 4 { Err(Error::Interrupted) } else { Ok(clean(1.0)) }
    });
    let rounds = rounds.unwrap();
    assert!(rounds.interrupted);
    assert_eq!((rounds.count(), rounds.iter().count(), rounds.of(&"b").count()), (2, 3, 1));
}

#[test]
fn warmup_rounds_run_and_do_not_count() {
    let mut runs = 0;
    let runner = Runner { warmup_rounds: 1, ..ROUNDS };
    let rounds = runner.measure(&["a"], |_| {
        runs += 1;
        Ok(clean(f64::from(runs)))
    });
    assert_eq!((rounds.unwrap().first().map(|sample| sample.value), runs), (Some(2.0), 4));
}
