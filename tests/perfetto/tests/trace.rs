//! Traces of the lab, read by Perfetto's own definitions.
//!
//! The test runs the `vmm-lab` that `VMM_LAB` names, or else builds it in the workspace.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use perfetto_protos::trace::Trace;
use perfetto_protos::track_event::track_event::Type;
use protobuf::Message;
use serde_json::Value;

/// Name of the instants at which a policy preempts a vCPU.
const PREEMPTION: &str = "preempted by policy";

/// The path of `vmm-lab`.
fn vmm_lab() -> PathBuf {
    if let Some(path) = std::env::var_os("VMM_LAB") {
        return path.into();
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let args = ["build", "--locked", "-p", "lab", "--bin", "vmm-lab", "--message-format=json"];
    let built = Command::new(cargo).current_dir(root).args(args).output().expect("cargo runs");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let messages = String::from_utf8(built.stdout).expect("JSON");
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let paths = messages.filter_map(|message| message["executable"].as_str().map(PathBuf::from));
    paths.last().expect("cargo names the executable")
}

/// Whether a guest can run here.
///
/// # Panics
/// If `/dev/kvm` is missing and `VMM_TESTS_WITHOUT_KVM` is not 1.
fn has_kvm() -> bool {
    let has_kvm = Path::new("/dev/kvm").exists();
    let is_expected = std::env::var_os("VMM_TESTS_WITHOUT_KVM").is_some_and(|value| value == "1");
    assert!(has_kvm || is_expected, "/dev/kvm is missing (set VMM_TESTS_WITHOUT_KVM=1 to skip)");
    has_kvm
}

fn is_root() -> bool {
    fs::metadata("/proc/self").expect("/proc is mounted").uid() == 0
}

/// The numbers of the CPUs that this process may use.
fn cpus() -> Vec<usize> {
    let status = fs::read_to_string("/proc/self/status").expect("/proc is mounted");
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let number = |text: &str| text.parse::<usize>().expect("a CPU number");
    let range = |part: &str| match part.split_once('-') {
        Some((first, last)) => (number(first)..=number(last)).collect::<Vec<_>>(),
        None => vec![number(part)],
    };
    list.expect("a list of CPUs").trim().split(',').flat_map(range).collect()
}

/// A track, as a viewer shows it.
#[derive(Debug, Default)]
struct Row {
    name: String,
    parent: Option<u64>,
    is_counter: bool,
    /// Names of open slices.
    open: Vec<String>,
    slices: Vec<(String, u64)>,
    /// Begin and end of critical sections.
    holds: Vec<(u64, u64)>,
    instants: Vec<String>,
    counts: Vec<i64>,
    last: u64,
}

/// Reads a trace as a viewer does. Asserts that each event belongs to a track that was declared
/// before, that time does not go back, and that the slices of a track do not overlap.
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
        let row = rows.get_mut(&event.track_uuid()).expect("its track was declared before");
        assert!(packet.timestamp() >= row.last, "time goes back in {}", row.name);
        assert_eq!(packet.timestamp_clock_id(), 3, "the monotonic clock");
        row.last = packet.timestamp();
        match event.type_() {
            Type::TYPE_SLICE_BEGIN => {
                row.open.push(event.name().to_owned());
                row.slices.push((event.name().to_owned(), packet.timestamp()));
            }
            Type::TYPE_SLICE_END => {
                let name = row.open.pop().expect("a slice is open");
                if name == "holds" {
                    let begin = row.slices.last().expect("it has begun").1;
                    row.holds.push((begin, packet.timestamp()));
                }
            }
            Type::TYPE_INSTANT => row.instants.push(event.name().to_owned()),
            Type::TYPE_COUNTER => row.counts.push(event.counter_value()),
            Type::TYPE_UNSPECIFIED => panic!("an event without a type"),
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
fn trace_shows_cpus_vcpus_and_the_preemptions_that_the_results_count() {
    if !has_kvm() {
        return eprintln!("SKIPPED trace: there is no /dev/kvm");
    }
    if !is_root() {
        return eprintln!("SKIPPED trace: perf and BPF need root");
    }
    let vmm_lab = vmm_lab();
    for (mechanism, guests) in [("deschedule", 1_usize), ("auto", 2)] {
        let folder = tempfile::tempdir().unwrap();
        let (trace, json) = (folder.path().join("run.pftrace"), folder.path().join("run.json"));
        let mut command = Command::new(&vmm_lab);
        command.args(["run", "--vcpus", "4", "--lock", "mcs", "--wait", "spin", "--quiet"]);
        command.args([
            "--section-ns",
            "15000",
            "--warmup-ms",
            "50",
            "--duration-ms",
            "300",
            "--policy",
            "rr:slice=3ms",
        ]);
        command.args(["--mechanism", mechanism, "--guests", &guests.to_string()]);
        let ended = command.arg("--trace").arg(&trace).arg("--json").arg(&json).output().unwrap();
        let stderr = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(0), "{stderr}");
        let results: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
        let rows = read(&fs::read(&trace).unwrap());
        assert!(rows.values().all(|row| row.open.is_empty() && !row.name.is_empty()));
        let named = |name: &str| rows.values().filter(|row| row.name == name).collect::<Vec<_>>();
        for cpu in cpus() {
            assert!(!named(&format!("CPU {cpu}"))[0].slices.is_empty());
            assert!(!named(&format!("CPU {cpu} plan"))[0].slices.is_empty());
        }
        assert_eq!(named("vCPU 3").len(), guests, "a track for the vCPU of each guest");
        for row in named("vCPU 0").into_iter().chain(named("vCPU 3")) {
            let has = |name: &str| row.slices.iter().any(|(slice, _)| slice == name);
            assert!(has("running") && (has("descheduled") || has("preempted")), "{:?}", row.slices.first());
            let parent = &rows[&row.parent.expect("a vCPU belongs to a guest")];
            assert!(parent.name.starts_with("guest "));
        }
        // Waiters of a queue lock wait long under round robin
        assert!(rows.values().any(|row| row.slices.iter().any(|(name, _)| name == "waits")));
        // The lock is exclusive: no vCPU of a guest holds it while another one does
        for guest in rows.keys() {
            let locks = rows.values().filter(|row| row.parent == Some(*guest));
            let mut holds: Vec<_> = locks.flat_map(|row| row.holds.iter().copied()).collect();
            holds.sort_unstable();
            let overlaps = holds.windows(2).filter(|pair| pair[1].0 < pair[0].1).count();
            assert_eq!(overlaps, 0, "of {} holds", holds.len());
        }
        assert!(rows.values().any(|row| !row.holds.is_empty()));
        assert!(named("vCPU 0 preempted").iter().any(|row| !row.slices.is_empty()));
        for name in ["steal", "acquisitions"] {
            let counters = named(name);
            assert!(
                counters.len() == guests
                    && counters.iter().all(|row| row.is_counter && row.counts.len() > 10)
            );
        }
        assert!(named("steal").iter().all(|row| row.counts.is_sorted() && row.counts.last() > Some(&0)));
        let preemptions: usize =
            rows.values().map(|row| row.instants.iter().filter(|name| *name == PREEMPTION).count()).sum();
        assert_eq!(Some(preemptions as u64), results["sched"]["preemptions"].as_u64());
        let decisions: usize =
            rows.values().map(|row| row.instants.iter().filter(|name| *name == "decision").count()).sum();
        assert_eq!(Some(decisions as u64), results["sched"]["decisions"].as_u64());
        assert!(preemptions > 50);
    }
}
