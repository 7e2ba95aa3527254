//! Publishers that need no BPF, holds, faults, and the oracle that finds them.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on says so and fails"
)]

#[path = "../support/lab.rs"]
mod support;

use std::io;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use lab::guest::{LabConfig, LabGuest};
use lab::results::{ByteFigures, RunResult};
use protocol::VcpuId;
use protocol::kvm::Registration;
use steal_time::publisher::PublisherKind;
use steal_time::publisher::record::GuestRecord;
use support::{
    LIMIT, alone, cpus, end_of, guest, has_bpf, has_classic_bpf, has_kvm, has_perf, has_program,
    has_two_cpus, run, skip, vmm_run,
};
use vmm::supervise::Outcome;
use vmm::timings::Timings;
use vmm::vcpu::command::VcpuSnapshot;

fn can_publish(publisher: PublisherKind) -> bool {
    match publisher {
        PublisherKind::Bpf => has_bpf(),
        PublisherKind::BpfClassic => has_classic_bpf(),
        PublisherKind::Perf => has_perf(),
        _ => has_kvm(),
    }
}

/// Two vCPUs that spin on one CPU, and watch each other.
fn watch(publisher: PublisherKind, faults: Option<&str>) -> (RunResult, ByteFigures) {
    let config = guest(2, publisher, "job=watch duration_ms=500");
    let faults = faults.map(|faults| faults.parse().expect("faults"));
    let config = LabConfig { faults, ..config.on(cpus().first(1)) };
    let (run, result) = run(&config);
    assert!(matches!(run.monitor.outcome, Outcome::Reset), "{:?}", result.outcome);
    let byte = result.window.as_ref().and_then(|window| window.byte).expect("the guest sampled");
    (result, byte)
}

fn steal_is_the_run_delay(result: &RunResult) {
    let window = result.window.as_ref().expect("a window");
    let (guest, host) = (window.guest_steal_ns as f64, window.host.run_delay_ns as f64);
    assert!(guest > 0.4 * window.length_ns as f64, "{window:?}");
    assert!((guest - host).abs() < 30e6, "guest {guest}, host {host}");
}

#[test]
fn publishers_of_the_byte_publish_every_preemption_and_all_steal_of_spinners_on_one_cpu() {
    for publisher in [PublisherKind::BpfClassic, PublisherKind::Perf] {
        if !can_publish(publisher) || !has_two_cpus() {
            continue;
        }
        let (result, byte) = watch(publisher, None);
        assert!(byte.other_share() >= 0.99, "{publisher}: {byte:?}");
        for vcpu in &result.vcpus {
            let counts = vcpu.publication.expect("it counts");
            assert!(vcpu.preemptions.abs_diff(counts.program.sched_out) <= 1, "{vcpu:?}");
            assert_eq!(counts.lost, 0);
        }
        steal_is_the_run_delay(&result);
    }
}

/// A kernel that does not describe its types, and thread ids that are not the kernel's own.
#[test]
fn classic_program_takes_over_where_there_is_no_btf_in_any_pid_namespace() {
    if !has_classic_bpf() || !has_program("unshare") {
        return;
    }
    let script = r#"
        mount -t tmpfs none /sys/kernel/btf && mount -t proc proc /proc && exec "$0" run "$@"
    "#;
    let without_btf = |args: &[&str]| {
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--pid", "--fork", "sh", "-c", script, env!("CARGO_BIN_EXE_vmm-lab")])
            .args(args);
        end_of(&mut command)
    };
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("result.json");
    let ended = without_btf(&[
        "--vcpus",
        "2",
        "--cpus",
        "0",
        "--job",
        "watch",
        "--duration-ms",
        "500",
        "--json",
        json.to_str().unwrap(),
    ]);
    if ended.status != Some(0) && ended.stderr.contains("mount") {
        return skip(&format!("nothing can be hidden here: {}", ended.stderr.trim()));
    }
    assert_eq!(ended.status, Some(0), "{ended:?}");
    assert!(
        ended.stdout.contains("publisher bpf-classic (not bpf: Cannot read /sys/kernel/btf"),
        "{ended:?}"
    );
    let result: serde_json::Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    assert_eq!(result["publisher"]["kind"], "bpf-classic");
    let byte = &result["window"]["byte"];
    assert!(
        byte["other_set"].as_u64() > byte["other_samples"].as_u64().map(|samples| samples * 99 / 100),
        "{byte}"
    );

    let ended = without_btf(&["--vcpus", "1", "--publisher", "bpf", "--job", "reset"]);
    assert_eq!(ended.status, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("bpf-classic"), "what to try: {ended:?}");
}

#[test]
fn observer_without_a_cpu_of_its_own_does_not_chase_its_own_tail() {
    if !has_perf() {
        return;
    }
    let (_, result) = run(&guest(2 * cpus().count(), PublisherKind::Perf, "job=watch duration_ms=500"));
    let window = result.window.expect("a window");
    // Time slices are milliseconds. A loop of switches and wakes makes tens of thousands.
    assert!(window.host.preemptions < 5_000, "{window:?}");
}

#[test]
fn park_sets_no_byte_for_what_the_host_does_and_tells_its_steal_all_the_same() {
    if !has_kvm() {
        return;
    }
    let (result, byte) = watch(PublisherKind::Monitor, None);
    assert_eq!((byte.other_set, byte.own_set), (0, 0));
    // A guest that spins would leave at its end only, but it is polled.
    steal_is_the_run_delay(&result);
    assert!(
        result.vcpus.iter().all(|vcpu| vcpu.publication.is_some_and(|counts| counts.program.sched_out == 0))
    );
}

fn record_of(guest: &LabGuest, look: &VcpuSnapshot) -> GuestRecord {
    match Registration::from_msr(look.msr.expect("it exists")) {
        Ok(Registration::At { gpa }) => guest.vm().record(gpa).expect("in RAM"),
        other => panic!("{other:?}"),
    }
}

fn wait_until(what: &str, is: impl Fn() -> bool) {
    let began = Instant::now();
    while !is() {
        assert!(began.elapsed() < LIMIT, "it never came that {what}");
        thread::sleep(Duration::from_micros(200));
    }
}

fn snapshot(guest: &LabGuest) -> VcpuSnapshot {
    let paused = guest.vm().pause().expect("nobody else pauses it");
    let look = guest.vm().snapshot(&paused).remove(0);
    guest.vm().resume(paused);
    look
}

#[test]
fn held_vcpu_is_marked_until_released_and_the_time_is_steal() {
    const HOLDS: usize = 5;
    for publisher in
        [PublisherKind::Bpf, PublisherKind::BpfClassic, PublisherKind::Perf, PublisherKind::Monitor]
    {
        if !can_publish(publisher) {
            continue;
        }
        alone(|| {
            let config = guest(1, publisher, "job=watch warmup_ms=5 duration_ms=60000");
            let guest =
                LabGuest::start(&config, io::sink(), Timings::since(Instant::now())).expect("it starts");
            assert!(guest.wait_for_window(LIMIT), "{publisher}");
            let before = snapshot(&guest);
            let record = record_of(&guest, &before);
            let steal_before = record.steal_ns();
            for _ in 0..HOLDS {
                assert!(guest.vm().deschedule(VcpuId::BOOT));
                wait_until("the byte is set", || record.preempted() != 0);
                for _ in 0..20 {
                    thread::sleep(Duration::from_millis(1));
                    assert_eq!(record.preempted(), 1, "{publisher}");
                }
                // A pause in its midst makes the byte 0 for as long as it lasts.
                let paused = guest.vm().pause().expect("nobody else pauses it");
                assert_eq!(record.preempted(), 0, "{publisher}");
                guest.vm().resume(paused);
                wait_until("the byte is set again", || record.preempted() != 0);
                guest.vm().schedule(VcpuId::BOOT);
                wait_until("the byte is clear", || record.preempted() == 0);
            }
            let after = snapshot(&guest);
            let holds = guest.descheduled(VcpuId::BOOT);
            let parked: u64 = holds.iter().map(|held| held.descheduled_ns).sum();
            assert!(holds.len() >= HOLDS && parked >= 20_000_000 * HOLDS as u64, "{holds:?}");
            let delay = after.account.since(before.account).run_delay_ns;
            let forgotten = after.discarded_ns - before.discarded_ns;
            let steal = record.steal_ns() - steal_before;
            // What is forgotten, and what the last rest has not told yet, is the waiting of its thread at rest.
            assert!(steal >= parked && steal <= parked + delay, "{publisher}: {steal}, {parked}, {delay}");
            assert!(
                steal + forgotten + 5_000_000 >= parked + delay,
                "{publisher}: {steal}, {parked}, {delay}"
            );
            guest.report().expect("ours").header.close_now.store(1, Ordering::Relaxed);
            let run = guest.wait().expect("it ends");
            assert!(matches!(run.monitor.outcome, Outcome::Reset));
        });
    }
}

#[test]
fn paused_vcpus_are_unmarked_and_their_records_untouched_without_bpf_as_well() {
    for publisher in [PublisherKind::BpfClassic, PublisherKind::Perf, PublisherKind::Monitor] {
        if !can_publish(publisher) {
            continue;
        }
        alone(|| {
            // Whoever is paused has just lost its CPU to the other, half of the time.
            let config = guest(2, publisher, "job=watch warmup_ms=5 duration_ms=60000");
            let config = config.on(cpus().first(1));
            let guest =
                LabGuest::start(&config, io::sink(), Timings::since(Instant::now())).expect("it starts");
            assert!(guest.wait_for_window(LIMIT), "{publisher}");
            for _ in 0..50 {
                thread::sleep(Duration::from_millis(7));
                let paused = guest.vm().pause().expect("nobody else pauses it");
                let records: Vec<_> =
                    guest.vm().snapshot(&paused).iter().map(|look| record_of(&guest, look)).collect();
                let before: Vec<_> = records.iter().map(|record| record.bytes()).collect();
                assert!(records.iter().all(|record| record.preempted() == 0), "{publisher}");
                thread::sleep(Duration::from_millis(1));
                let after: Vec<_> = records.iter().map(|record| record.bytes()).collect();
                guest.vm().resume(paused);
                assert_eq!(before, after, "{publisher}");
            }
            guest.report().expect("ours").header.close_now.store(1, Ordering::Relaxed);
            guest.wait().expect("it ends");
        });
    }
}

#[test]
fn fault_that_was_asked_for_is_made_and_counted_around_each_publisher() {
    for publisher in [PublisherKind::Bpf, PublisherKind::Perf] {
        if !can_publish(publisher) || !has_two_cpus() {
            continue;
        }
        let counts = |result: &RunResult| {
            let counts = result.vcpus.iter().map(|vcpu| vcpu.faults.expect("it counts"));
            counts.collect::<Vec<_>>()
        };
        let (result, byte) = watch(publisher, Some("drop=1"));
        assert_eq!((byte.other_set, byte.own_set), (0, 0), "{publisher}");
        let faults = counts(&result);
        assert!(faults.iter().all(|faults| faults.sets > 10 && faults.dropped == faults.sets), "{faults:?}");
        steal_is_the_run_delay(&result);

        let (result, byte) = watch(publisher, Some("drop=0.5,seed=3"));
        assert!((0.1..0.9).contains(&byte.other_share()), "{publisher}: {byte:?}");
        let faults = counts(&result);
        assert!(faults.iter().all(|faults| (1..faults.sets).contains(&faults.dropped)), "{faults:?}");

        let (result, byte) = watch(publisher, Some("stick"));
        assert!(byte.own_set > byte.own_samples / 2, "{publisher}: {byte:?}");
        assert!(counts(&result).iter().all(|faults| faults.stuck > 0));
    }
}

#[test]
fn publisher_that_writes_guest_memory_by_itself_cannot_be_made_faulty() {
    if !has_kvm() {
        return;
    }
    for publisher in ["kernel", "off"] {
        let ended = end_of(&mut vmm_run(["--vcpus", "1", "--publisher", publisher, "--faults", "drop=1"]));
        assert_eq!(ended.status, Some(1), "{ended:?}");
        assert!(ended.stderr.contains("faulty") && ended.stderr.lines().count() == 1, "{ended:?}");
    }
    let ended = end_of(&mut vmm_run(["--vcpus", "1", "--faults", "drop=2"]));
    assert_eq!(ended.status, Some(2), "{ended:?}");
    assert!(ended.stderr.contains("is no fault"), "{ended:?}");
}

/// Somebody without any right, but in the group that may use KVM; `paranoid` is what perf asks of the like.
#[test]
fn unprivileged_user_who_may_use_kvm_runs_guests_and_is_told_what_is_not_seen() {
    if !has_kvm() || !has_program("unshare") || !has_program("setpriv") {
        return;
    }
    let script = r#"
        set -e
        node=$(mktemp -d)/kvm
        chmod 755 "${node%/kvm}"
        mknod "$node" c 10 232 && chgrp 65534 "$node" && chmod 660 "$node"
        mount --bind "$node" /dev/kvm
        cp "$0" "${node%/kvm}/vmm" && chmod 755 "${node%/kvm}/vmm"
        exec setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all "${node%/kvm}/vmm" run "$@"
    "#;
    let as_nobody = |args: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script, env!("CARGO_BIN_EXE_vmm-lab")]).args(args);
        end_of(&mut command)
    };
    let ended = as_nobody(&["--vcpus", "2", "--job", "watch", "--duration-ms", "200"]);
    if ended.status != Some(0) && !ended.stderr.contains("Cannot") {
        return skip(&format!("a user without rights cannot be made here: {}", ended.stderr.trim()));
    }
    assert_eq!(ended.status, Some(0), "{ended:?}");
    let found = ["publisher perf (not bpf: ", "publisher monitor (not bpf: "];
    assert!(found.iter().any(|found| ended.stdout.contains(found)), "{ended:?}");
    assert!(ended.stdout.contains("CAP_BPF"), "how to get it back: {ended:?}");
    assert!(ended.stdout.lines().any(|line| line.starts_with("Publisher p")), "what is not seen: {ended:?}");
    let ended = as_nobody(&["--vcpus", "1", "--publisher", "bpf", "--job", "reset"]);
    assert_eq!(ended.status, Some(1), "{ended:?}");
}

#[test]
fn only_the_program_can_be_made_to_overlook_switches() {
    if !has_kvm() {
        return;
    }
    let ended = end_of(&mut vmm_run(["--vcpus", "1", "--publisher", "monitor", "--faults", "lose_every=2"]));
    assert_eq!(ended.status, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("only a BPF program is told of each"), "{ended:?}");
}
