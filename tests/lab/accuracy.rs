//! Accuracy: the oracle, and the faults that it must find.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on says so and fails"
)]

#[path = "../support/lab.rs"]
mod support;

use std::io;
use std::process::Stdio;
use std::time::Duration;

use lab::accuracy::{self, Row, Tally};
use lab::cli::AccuracyArgs;
use steal_time::publisher::PublisherKind;
use support::{
    alone, end_of, has_bpf, has_classic_bpf, has_perf, has_two_cpus, kill, start, vmm_lab, wait_for,
    wait_for_cpu_time,
};

/// The publishers that a program publishes for, of those that can be had.
fn programs() -> Vec<PublisherKind> {
    let bpf = has_bpf().then_some(PublisherKind::Bpf);
    bpf.into_iter().chain(has_classic_bpf().then_some(PublisherKind::BpfClassic)).collect()
}

/// What is found out about one publisher.
fn judged(publisher: PublisherKind, faults: Option<&str>, duration_ms: u32) -> Row {
    let args = AccuracyArgs {
        publishers: vec![publisher],
        faults: faults.map(|faults| faults.parse().expect("faults")),
        cpus: None,
        duration_ms,
        json: None,
    };
    let accuracy = alone(|| accuracy::run(&args, |_| {})).expect("there is somebody to look");
    accuracy.rows.into_iter().next().expect("a row for each publisher")
}

/// Nothing was lost, the publisher has counted each switch, and told what the host took.
fn is_exact(tally: &Tally) {
    assert!(tally.doubts.is_empty(), "{:?}", tally.doubts);
    let counted = tally.counted.expect("it counts").program;
    assert_eq!((counted.sched_out, counted.timeslices()), (tally.outs, tally.ins), "{counted:?}");
    assert!(tally.steal_ns.abs_diff(tally.lost_ns) <= tally.lost_ns / 100, "{tally:?}");
}

#[test]
fn program_misses_nothing_and_counts_to_the_last_whether_it_is_looked_at_or_moved_about() {
    if !has_perf() || !has_two_cpus() {
        return;
    }
    for publisher in programs() {
        let row = judged(publisher, None, 1_000);
        let finding = row.finding.expect("it can be measured");
        assert!(finding.tally.outs > 100 && finding.byte.sched_out.missed == 0, "{:?}", finding.byte);
        is_exact(&finding.tally);
        let moves = row.moves.expect("it can be measured");
        assert!(moves.moves > 50 && moves.tally.outs > 50, "{moves:?}");
        is_exact(&moves.tally);
    }
}

#[test]
fn perf_counts_each_switch_and_tells_what_was_lost() {
    if !has_perf() || !has_two_cpus() {
        return;
    }
    let row = judged(PublisherKind::Perf, None, 1_000);
    is_exact(&row.finding.expect("it can be measured").tally);
    is_exact(&row.moves.expect("it can be measured").tally);
}

#[test]
fn switch_ins_that_are_overlooked_are_healed_and_counted_to_the_last() {
    if !has_perf() || !has_two_cpus() {
        return;
    }
    for publisher in programs() {
        let row = judged(publisher, Some("lose_every=4"), 1_000);
        let finding = row.finding.expect("it can be measured");
        is_exact(&finding.tally);
        let counted = finding.tally.counted.expect("it counts").program;
        assert!(counted.healed + counted.unseen >= finding.tally.ins / 5, "{counted:?}");
        // A vCPU may lose its CPU again before the loss is found out; but every preemption is told.
        assert_eq!(finding.byte.sched_out.missed, 0, "{} returns missed", finding.byte.sched_in.missed);
        is_exact(&row.moves.expect("it can be measured").tally);
    }
}

/// What was found is `made` within 5 %, but for what nobody saw; a handful more or less is no rate. Of what was `found`, so
/// much may have gone wrong without any fault.
fn is_found(what: &str, (found, without): (u64, u64), unseen: u64, made: u64) {
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
fn oracle_finds_each_fault_at_its_rate() {
    if !has_bpf() || !has_perf() || !has_two_cpus() {
        return;
    }
    let found = |faults| judged(PublisherKind::Bpf, Some(faults), 2_000).finding.expect("it can be measured");
    // What goes wrong without any fault, because there is a thread that copies: too late, or not at all.
    let copied = found("drop=0.000001");
    assert_eq!(copied.faults().expect("it counts").dropped, 0);
    let by_copying = copied.byte;

    let dropped = found("drop=0.3");
    let made = dropped.faults().expect("it counts").dropped;
    let missed = (dropped.byte.sched_out.missed, by_copying.sched_out.missed);
    is_found("drop", missed, dropped.byte.sched_out.unobserved, made);

    let lies = found("false_hz=400");
    let made = lies.faults().expect("it counts").falsely_set;
    // A lie about a vCPU that has just been preempted, which the copying thread does not know yet, is none.
    let clear_too_long = by_copying.wrongly_clear.total_ns;
    let came_true = made * clear_too_long / by_copying.observed_ns;
    let falsely_set = (lies.byte.falsely_set, by_copying.falsely_set);
    is_found("false", falsely_set, lies.byte.sched_out.unobserved + came_true, made);

    let stuck = found("stick");
    let counts = stuck.faults().expect("it counts");
    // A preemption that was not copied is over before its end could have been; the byte is stuck all the same.
    let uncopied = stuck.byte.sched_out.happened.saturating_sub(counts.sets);
    let missed = (stuck.byte.sched_in.missed, uncopied);
    is_found("stick", missed, stuck.byte.sched_in.unobserved, counts.stuck);
    assert!(stuck.byte.sched_in.latencies_ns.is_empty());

    let late = found("delay_us=500").byte;
    // Two preemptions between which the copying thread did not look are one to it: hence not the least, but the median.
    assert!(late.sched_out.quantile_ns(0.5).expect("slow preemptions are seen") >= 490_000, "{late:?}");
}

#[test]
fn doctor_has_the_oracle_look_at_each_publisher() {
    if !has_perf() || !has_two_cpus() {
        return;
    }
    let ended = alone(|| end_of(&mut vmm_lab(["doctor"])));
    assert_eq!(ended.status, Some(0), "{ended:?}");
    for publisher in ["bpf", "bpf-classic", "perf", "monitor", "kernel"] {
        let line = ended.stdout.lines().find(|line| line.contains(&format!("byte by {publisher}")));
        assert!(line.is_some_and(|line| line.contains("preemptions") || line.starts_with("--")), "{ended:?}");
    }
    assert!(ended.stdout.contains("--  byte by monitor"), "{ended:?}");
}

#[test]
fn quality_needs_a_cpu_to_look_from_and_can_be_interrupted() {
    if !has_perf() {
        return;
    }
    let ended = end_of(&mut vmm_lab(["accuracy", "--cpus", "0"]));
    assert_eq!(ended.status, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("CPU of its own") && ended.stderr.contains("--cpus"), "{ended:?}");
    if !has_two_cpus() {
        return;
    }
    let mut command = vmm_lab(["accuracy", "--publishers", "perf,monitor"]);
    let mut running = start(command.stdout(Stdio::piped()).stderr(Stdio::null()));
    let stdout = running.take_stdout();
    wait_for_cpu_time(&running, Duration::from_millis(300));
    kill(running.id(), "INT");
    assert_eq!(wait_for(running), Some(130));
    let printed = io::read_to_string(stdout.expect("it is piped")).expect("it prints text");
    assert!(printed.contains("verdict") && !printed.contains("monitor"), "{printed}");
}
