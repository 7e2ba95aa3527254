//! Accuracy: the oracle, and the faults that it finds.

use std::fs;
use std::io;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::{
    alone, end_of, has, judge_undisturbed, kill, needs, start, vmm_lab, vmm_lab_in_time_namespace, wait_for,
    wait_for_cpu_time,
};
use lab::accuracy::{self, AccuracyArgs, ObservedCounts, Row};
use serde_json::Value;
use steal_time::publisher::PublisherKind;

/// The publishers with a BPF program that this host allows.
fn programs() -> Vec<PublisherKind> {
    let bpf = has::bpf().then_some(PublisherKind::Bpf);
    bpf.into_iter().chain(has::classic_bpf().then_some(PublisherKind::BpfClassic)).collect()
}

/// Measures one publisher.
fn measure(publisher: PublisherKind, faults: Option<&str>, duration_ms: u32) -> Row {
    let args = AccuracyArgs {
        publishers: vec![publisher],
        faults: faults.map(|faults| faults.parse().expect("faults")),
        cpus: None,
        duration_ms,
        json: None,
    };
    let accuracy = alone(|| accuracy::run(&args, |_| {})).expect("the oracle can be run");
    accuracy.rows.into_iter().next().expect("a row for each publisher")
}

/// Asserts that the oracle lost nothing, and that the publisher counted each switch and published
/// all steal.
fn assert_exact(counts: &ObservedCounts) {
    assert!(counts.inconsistencies.is_empty(), "{:?}", counts.inconsistencies);
    let counted = counts.counted.expect("it counts").program;
    assert_eq!((counted.sched_out, counted.timeslices()), (counts.sched_out, counts.sched_in), "{counted:?}");
    assert!(counts.steal_ns.abs_diff(counts.lost_ns) <= counts.lost_ns / 100, "{counts:?}");
}

#[test]
fn program_misses_no_switch_while_the_oracle_samples_and_under_migration() {
    needs!(perf, two_cpus);
    judge_undisturbed(|| {
        for publisher in programs() {
            let row = measure(publisher, None, 600);
            let report = row.oracle.expect("it can be measured");
            assert!(
                report.counts.sched_out > 100 && report.preempted.sched_out.missed == 0,
                "{:?}",
                report.preempted
            );
            assert_exact(&report.counts);
            let migration = row.migration.expect("it can be measured");
            assert!(migration.migrations > 50 && migration.counts.sched_out > 50, "{migration:?}");
            assert_exact(&migration.counts);
        }
    });
}

#[test]
fn perf_counts_every_switch_and_publishes_all_steal() {
    needs!(perf, two_cpus);
    judge_undisturbed(|| {
        let row = measure(PublisherKind::Perf, None, 600);
        assert_exact(&row.oracle.expect("it can be measured").counts);
        assert_exact(&row.migration.expect("it can be measured").counts);
    });
}

#[test]
fn lost_switch_ins_are_healed_and_all_are_counted() {
    needs!(perf, two_cpus);
    judge_undisturbed(|| {
        for publisher in programs() {
            let row = measure(publisher, Some("lose_every=4"), 600);
            let report = row.oracle.expect("it can be measured");
            assert_exact(&report.counts);
            let counted = report.counts.counted.expect("it counts").program;
            assert!(counted.healed + counted.unseen >= report.counts.sched_in / 5, "{counted:?}");
            // A vCPU may be preempted again before a lost switch-in is healed, but every preemption
            // is published
            assert_eq!(
                report.preempted.sched_out.missed, 0,
                "{} switch-ins missed",
                report.preempted.sched_in.missed
            );
            assert_exact(&row.migration.expect("it can be measured").counts);
        }
    });
}

#[test]
fn accuracy_in_a_time_namespace_is_as_without() {
    needs!(perf, two_cpus, time_namespaces);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let json = folder.path().join("accuracy.json");
    judge_undisturbed(|| {
        for publisher in programs() {
            let mut command = vmm_lab_in_time_namespace(["accuracy", "--publishers", &publisher.to_string()]);
            let ended = end_of(command.args(["--duration-ms", "600", "--json"]).arg(&json));
            assert_eq!(ended.status, Some(0), "{ended:?}");
            let results: Value = serde_json::from_slice(&fs::read(&json).expect("it writes")).expect("JSON");
            let oracle = &results["rows"][0]["oracle"]["Ok"];
            let of = |edge: &str, field: &str| oracle["preempted"][edge][field].as_u64().expect("a count");
            let counted = oracle["sched_out"].as_u64().expect("a count");
            // The monitor also deschedules the vCPU, which is no preemption by perf
            assert!(of("sched_out", "happened") >= counted - counted / 10 && counted > 100, "{oracle}");
            assert_eq!(of("sched_out", "missed"), 0, "{oracle}");
            // With times of two clocks most were false. A hypervisor may pause the CPU between the
            // program and perf's time stamp
            let falsely_set = oracle["preempted"]["falsely_set"].as_u64().expect("a count");
            assert!(falsely_set <= of("sched_out", "happened") / 100, "{oracle}");
            assert_eq!(oracle["inconsistencies"], Value::Array(Vec::new()), "{oracle}");
            let wrongly_set = oracle["preempted"]["wrongly_set"]["total_ns"].as_u64().expect("a time");
            let observed = oracle["preempted"]["observed_ns"].as_u64().expect("a time");
            assert!(wrongly_set < observed / 100, "{oracle}");
        }
    });
}

#[test]
fn accuracy_beside_a_busy_process_is_disturbed_and_never_known() {
    needs!(perf, two_cpus);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let json = folder.path().join("accuracy.json");
    let mut busy = Command::new("sh");
    // Not a child of the lab, so its CPU time is that of another task
    let busy = start(busy.args(["-c", "while :; do :; done"]));
    let mut command = vmm_lab(["accuracy", "--publishers", "monitor", "--duration-ms", "300", "--json"]);
    let ended = end_of(command.arg(&json));
    drop(busy);
    assert_eq!(ended.status, Some(0), "{ended:?}");
    let results: Value = serde_json::from_slice(&fs::read(&json).expect("it writes")).expect("JSON");
    for part in ["oracle", "migration"] {
        let row = &results["rows"][0][part]["Ok"];
        assert_eq!(row["verdict"], "disturbed", "{row}");
        assert!(row["disturbance"]["other_tasks_cpus"].as_f64() > Some(0.06), "{row}");
    }
    assert!(!ended.stdout.contains("  known"), "{ended:?}");
    assert!(ended.stdout.contains("monitor, oracle: disturbed, because in "), "{ended:?}");
}

/// Asserts that the oracle found the faults that were `made`, within 5 %.
///
/// Of those `found`, `without` may be errors without a fault; `unseen` faults were between two
/// samples. A handful more or less is no rate.
fn assert_found(what: &str, (found, without): (u64, u64), unseen: u64, made: u64) {
    const HANDFUL: u64 = 6;
    assert!(made >= 40, "{what}: {made} made");
    let slack = made / 20 + HANDFUL;
    let least = found.saturating_sub(without);
    assert!(
        found + unseen + slack >= made && least <= made + slack,
        "{what}: {found} (+ {unseen}) of {made}"
    );
}

#[test]
fn oracle_finds_each_injected_fault_at_its_rate() {
    needs!(bpf, perf, two_cpus);
    judge_undisturbed(|| {
        let found =
            |faults| measure(PublisherKind::Bpf, Some(faults), 1_000).oracle.expect("it can be measured");
        // Errors without a fault, since a thread copies the byte: late, or not at all
        let copied = found("drop=0.000001");
        assert_eq!(copied.counts.faults.expect("it counts").dropped, 0);
        let by_copying = copied.preempted;

        let dropped = found("drop=0.3");
        let made = dropped.counts.faults.expect("it counts").dropped;
        let missed = (dropped.preempted.sched_out.missed, by_copying.sched_out.missed);
        assert_found("drop", missed, dropped.preempted.sched_out.unobserved, made);

        let spurious = found("false_hz=400");
        let made = spurious.counts.faults.expect("it counts").falsely_set;
        // The copying thread is late. A false byte is true if the vCPU has just been preempted, and
        // changes nothing if the vCPU has just returned
        let late_ns = by_copying.wrongly_clear.total_ns + by_copying.wrongly_set.total_ns;
        let unseen = spurious.preempted.sched_out.unobserved + made * late_ns / by_copying.running_ns;
        let falsely_set = (spurious.preempted.falsely_set, by_copying.falsely_set);
        assert_found("false", falsely_set, unseen, made);

        let stuck = found("stick");
        let counts = stuck.counts.faults.expect("it counts");
        // A preemption that was not copied is shorter than the copying period. The byte is stuck
        // all the same
        let uncopied = stuck.preempted.sched_out.happened.saturating_sub(counts.sets);
        let missed = (stuck.preempted.sched_in.missed, uncopied);
        assert_found("stick", missed, stuck.preempted.sched_in.unobserved, counts.stuck);
        assert!(stuck.preempted.sched_in.latencies_ns.is_empty());

        let late = found("delay_us=500").preempted;
        // The copying thread takes two preemptions between two copies for one: the median is
        // compared, not the minimum
        assert!(late.sched_out.quantile_ns(0.5).expect("slow preemptions are seen") >= 490_000, "{late:?}");
    });
}

#[test]
fn doctor_reports_the_byte_of_each_publisher() {
    needs!(perf, two_cpus);
    let ended = alone(|| end_of(&mut vmm_lab(["doctor"])));
    assert_eq!(ended.status, Some(0), "{ended:?}");
    for publisher in ["bpf", "bpf-classic", "perf", "monitor", "kernel"] {
        let line = ended.stdout.lines().find(|line| line.contains(&format!("preempted by {publisher}")));
        assert!(line.is_some_and(|line| line.contains("preemptions") || line.starts_with("--")), "{ended:?}");
    }
    assert!(ended.stdout.contains("--  preempted by monitor"), "{ended:?}");
}

#[test]
fn accuracy_needs_a_cpu_for_the_oracle_and_can_be_interrupted() {
    needs!(perf);
    let ended = end_of(&mut vmm_lab(["accuracy", "--cpus", "0"]));
    assert_eq!(ended.status, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("CPU of its own") && ended.stderr.contains("--cpus"), "{ended:?}");
    needs!(two_cpus);
    let mut command = vmm_lab(["accuracy", "--publishers", "perf,monitor"]);
    let mut running = start(command.stdout(Stdio::piped()).stderr(Stdio::null()));
    let stdout = running.take_stdout();
    wait_for_cpu_time(&running, Duration::from_millis(300));
    kill(running.id(), "INT");
    assert_eq!(wait_for(running), Some(130));
    let printed = io::read_to_string(stdout.expect("it is piped")).expect("it prints text");
    assert!(printed.contains("verdict") && !printed.contains("monitor"), "{printed}");
}
