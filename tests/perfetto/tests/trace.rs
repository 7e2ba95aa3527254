//! A trace, read by Perfetto's own definitions.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on says so and fails"
)]

mod support;

use std::collections::HashMap;
use std::fs;

use perfetto_protos::trace::Trace;
use perfetto_protos::track_event::track_event::Type;
use protobuf::Message;
use support::{end_of, has_bpf, has_kvm, has_perf, vmm};

/// A row, as a viewer would know it.
#[derive(Debug, Default)]
struct Row {
    name: String,
    parent: Option<u64>,
    is_counter: bool,
    /// Names of slices that have begun and not ended.
    open: Vec<String>,
    slices: Vec<(String, u64)>,
    instants: Vec<String>,
    counts: Vec<i64>,
    last: u64,
}

/// Reads a trace as a viewer does: each row's slices nest, time does not go back, and every event is of a row that was declared.
fn read(bytes: &[u8]) -> HashMap<u64, Row> {
    let trace = Trace::parse_from_bytes(bytes).expect("Perfetto's definitions read it");
    let mut rows: HashMap<u64, Row> = HashMap::new();
    let mut clocks = 0;
    for packet in &trace.packet {
        clocks += usize::from(packet.has_clock_snapshot());
        if packet.has_track_descriptor() {
            let track = packet.track_descriptor();
            let row = rows.entry(track.uuid()).or_default();
            track.name().clone_into(&mut row.name);
            row.parent = track.parent_uuid;
            row.is_counter = track.counter.is_some();
        }
        if !packet.has_track_event() {
            continue;
        }
        let event = packet.track_event();
        let row = rows.get_mut(&event.track_uuid()).expect("its row was declared before");
        assert!(packet.timestamp() >= row.last, "time goes back in {}", row.name);
        assert_eq!(packet.timestamp_clock_id(), 3, "the monotonic clock");
        row.last = packet.timestamp();
        match event.type_() {
            Type::TYPE_SLICE_BEGIN => {
                row.open.push(event.name().to_owned());
                row.slices.push((event.name().to_owned(), packet.timestamp()));
            }
            Type::TYPE_SLICE_END => drop(row.open.pop().expect("something had begun")),
            Type::TYPE_INSTANT => row.instants.push(event.name().to_owned()),
            Type::TYPE_COUNTER => row.counts.push(event.counter_value()),
            Type::TYPE_UNSPECIFIED => panic!("no such event is written"),
        }
        assert!(
            row.open.len() <= 1,
            "slices overlap in {}: {:?} {:?}",
            row.name,
            row.open,
            &row.slices[row.slices.len().saturating_sub(6)..]
        );
    }
    assert_eq!(clocks, 1);
    rows
}

#[test]
fn trace_shows_cpus_and_vcpus_and_the_preemptions_that_the_results_count() {
    if !has_kvm() || !has_perf() {
        return;
    }
    let publisher = if has_bpf() { "bpf" } else { "monitor" };
    for (mechanism, guests) in [("deschedule", 1_usize), ("auto", 2)] {
        let folder = tempfile::tempdir().unwrap();
        let (trace, json) = (folder.path().join("run.pftrace"), folder.path().join("run.json"));
        let mut command = vmm(["--vcpus", "4", "--lock", "mcs", "--wait", "spin", "--quiet"]);
        command.args([
            "--warmup-ms",
            "50",
            "--duration-ms",
            "300",
            "--policy",
            "rr:slice=3ms",
            "--publisher",
            publisher,
        ]);
        command.args(["--mechanism", mechanism, "--guests", &guests.to_string()]);
        let ended = end_of(command.arg("--trace").arg(&trace).arg("--json").arg(&json));
        assert_eq!(ended.status, Some(0), "{}", ended.stderr);
        let results: serde_json::Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
        let rows = read(&fs::read(&trace).unwrap());
        assert!(rows.values().all(|row| row.open.is_empty() && !row.name.is_empty()));
        let named = |name: &str| rows.values().filter(|row| row.name == name).collect::<Vec<_>>();
        for cpu in support::cpus().iter() {
            assert!(!named(&format!("CPU {cpu}"))[0].slices.is_empty());
            assert!(!named(&format!("CPU {cpu} plan"))[0].slices.is_empty());
        }
        assert_eq!(named("vCPU 3").len(), guests, "a row for each guest's");
        for row in named("vCPU 0").into_iter().chain(named("vCPU 3")) {
            let has = |name: &str| row.slices.iter().any(|(slice, _)| slice == name);
            assert!(has("running") && (has("descheduled") || has("preempted")), "{:?}", row.slices.first());
            let parent = &rows[&row.parent.expect("it belongs to a guest")];
            assert!(parent.name.starts_with("guest "));
        }
        // A queue under round robin waits for long, again and again.
        assert!(rows.values().any(|row| row.slices.iter().any(|(name, _)| name == "waits")));
        assert!(named("vCPU 0 preempted").iter().any(|row| !row.slices.is_empty()));
        for name in ["steal", "acquisitions"] {
            let counters = named(name);
            assert!(
                counters.len() == guests
                    && counters.iter().all(|row| row.is_counter && row.counts.len() > 10)
            );
        }
        assert!(named("steal").iter().all(|row| row.counts.is_sorted() && row.counts.last() > Some(&0)));
        let preemptions: usize = rows
            .values()
            .map(|row| row.instants.iter().filter(|name| *name == lab::trace::PREEMPTION).count())
            .sum();
        assert_eq!(Some(preemptions as u64), results["sched"]["preemptions"].as_u64());
        let decisions: usize =
            rows.values().map(|row| row.instants.iter().filter(|name| *name == "decision").count()).sum();
        assert_eq!(Some(decisions as u64), results["sched"]["decisions"].as_u64());
        assert!(preemptions > 50);
    }
}
