//! Publishers without BPF, vCPUs that the monitor deschedules, and injected faults.

use std::process::Command;
use std::thread;
use std::time::Duration;

use lab::guest::{LabConfig, LabGuest};
use lab::results::{PreemptedFigures, RunResult};
use protocol::VcpuId;
use protocol::kvm::Registration;
use steal_time::publisher::PublisherKind;
use steal_time::publisher::record::GuestRecord;
use vmm::supervise::Outcome;
use vmm::vcpu::command::VcpuSnapshot;

use crate::support::{
    alone, assert_counts_preemptions, assert_steal_is_run_delay, cpus, end_guest, end_of, guest,
    has_publisher, judge_undisturbed, needs, run, skip, start_window, vmm_run, wait_until, watch_on_one_cpu,
};

/// Two vCPUs that spin on one CPU and watch each other.
fn watch(publisher: PublisherKind, faults: Option<&str>) -> (RunResult, PreemptedFigures) {
    let config = guest(2, publisher, "job=watch duration_ms=500");
    let faults = faults.map(|faults| faults.parse().expect("faults"));
    let config = LabConfig { faults, ..config.on(cpus().first(1)) };
    let (run, result) = run(&config);
    assert!(matches!(run.monitor.outcome, Outcome::Reset), "{:?}", result.outcome);
    let byte = result.window.as_ref().and_then(|window| window.preempted).expect("the guest samples");
    (result, byte)
}

/// The steal that the guest reads is the run delay in the window of the host.
fn assert_window_steal_is_run_delay(result: &RunResult) {
    let window = result.window.as_ref().expect("a window");
    let (guest, host) = (window.guest_steal_ns as f64, window.host.run_delay_ns.unwrap() as f64);
    assert!(guest > 0.4 * window.length_ns as f64, "{window:?}");
    assert!((guest - host).abs() < 30e6, "guest {guest}, host {host}");
}

const WITHOUT_BTF: [PublisherKind; 2] = [PublisherKind::BpfClassic, PublisherKind::Perf];

#[test]
fn publishers_of_the_byte_publish_every_preemption_of_spinners_on_one_cpu() {
    needs!(two_cpus);
    for publisher in WITHOUT_BTF.into_iter().filter(|publisher| has_publisher(*publisher)) {
        judge_undisturbed(|| {
            let (result, byte) = watch(publisher, None);
            assert!(byte.other_share() >= 0.99, "{publisher}: {byte:?}");
            assert!(result.vcpus.iter().all(|vcpu| vcpu.publication.expect("it counts").lost == 0));
            assert_window_steal_is_run_delay(&result);
        });
    }
}

#[test]
fn publishers_of_the_byte_count_every_preemption_and_publish_all_steal() {
    needs!(two_cpus);
    for publisher in WITHOUT_BTF.into_iter().filter(|publisher| has_publisher(*publisher)) {
        alone(|| {
            let (before, after, window) = watch_on_one_cpu(publisher);
            assert_counts_preemptions(&before, &after);
            assert_steal_is_run_delay(&before, &after, window);
        });
    }
}

/// Without BTF, and with thread ids of a PID namespace, which are not the kernel's own.
#[test]
fn classic_program_takes_over_without_btf_in_any_pid_namespace() {
    needs!(classic_bpf, program("unshare"));
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
    judge_undisturbed(|| {
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
            return skip(&format!("BTF cannot be hidden: {}", ended.stderr.trim()));
        }
        assert_eq!(ended.status, Some(0), "{ended:?}");
        assert!(
            ended.stdout.contains("publisher bpf-classic (not bpf: Cannot read /sys/kernel/btf"),
            "{ended:?}"
        );
        let result: serde_json::Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
        assert_eq!(result["publisher"]["kind"], "bpf-classic");
        let byte = &result["window"]["preempted"];
        assert!(
            byte["other_set"].as_u64() > byte["other_samples"].as_u64().map(|samples| samples * 99 / 100),
            "{byte}"
        );
        let ended = without_btf(&["--vcpus", "1", "--publisher", "bpf", "--job", "reset"]);
        assert_eq!(ended.status, Some(1), "{ended:?}");
        assert!(ended.stderr.contains("bpf-classic"), "the message names what to try: {ended:?}");
    });
}

#[test]
fn perf_observer_without_a_cpu_of_its_own_causes_few_switches() {
    needs!(perf);
    judge_undisturbed(|| {
        let (_, result) = run(&guest(2 * cpus().count(), PublisherKind::Perf, "job=watch duration_ms=500"));
        let window = result.window.expect("a window");
        // Time slices take milliseconds. A loop of switches and wakes makes tens of thousands
        assert!(window.host.preemptions.unwrap() < 5_000, "{window:?}");
    });
}

#[test]
fn monitor_publisher_sets_no_byte_in_host_preemptions_and_publishes_their_steal() {
    needs!(kvm);
    judge_undisturbed(|| {
        let (result, byte) = watch(PublisherKind::Monitor, None);
        assert_eq!((byte.other_set, byte.own_set), (0, 0));
        // A guest that spins leaves only at its end, but the poller kicks it
        assert_window_steal_is_run_delay(&result);
        let counts = result.vcpus.iter().map(|vcpu| vcpu.publication.expect("it counts"));
        assert!(counts.into_iter().all(|counts| counts.program.sched_out == 0));
    });
}

fn record_of(guest: &LabGuest, snapshot: &VcpuSnapshot) -> GuestRecord {
    match Registration::from_msr(snapshot.msr.expect("the MSR exists")) {
        Ok(Registration::At { gpa }) => guest.vm().record(gpa).expect("in RAM"),
        other => panic!("{other:?}"),
    }
}

fn snapshot(guest: &LabGuest) -> VcpuSnapshot {
    let paused = guest.vm().pause().expect("nothing else pauses the guest");
    let snapshot = guest.vm().snapshot(&paused).remove(0);
    guest.vm().resume(paused);
    snapshot
}

const DESCHEDULING: [PublisherKind; 4] =
    [PublisherKind::Bpf, PublisherKind::BpfClassic, PublisherKind::Perf, PublisherKind::Monitor];

#[test]
fn descheduled_vcpu_is_marked_until_it_is_scheduled_and_the_time_is_steal() {
    const TIMES: usize = 5;
    for publisher in DESCHEDULING.into_iter().filter(|publisher| has_publisher(*publisher)) {
        judge_undisturbed(|| {
            let guest = start_window(&guest(1, publisher, "job=watch warmup_ms=5 duration_ms=60000"));
            let before = snapshot(&guest);
            let record = record_of(&guest, &before);
            let steal_before = record.steal_ns();
            for _ in 0..TIMES {
                assert!(guest.vm().deschedule(VcpuId::BOOT));
                wait_until("the byte is set", || record.preempted() != 0);
                for _ in 0..20 {
                    thread::sleep(Duration::from_millis(1));
                    assert_eq!(record.preempted(), 1, "{publisher}");
                }
                // The byte is 0 for as long as the guest is paused
                let paused = guest.vm().pause().expect("nothing else pauses the guest");
                assert_eq!(record.preempted(), 0, "{publisher}");
                guest.vm().resume(paused);
                wait_until("the byte is set again", || record.preempted() != 0);
                guest.vm().schedule(VcpuId::BOOT);
                wait_until("the byte is clear", || record.preempted() == 0);
            }
            let after = snapshot(&guest);
            let intervals = guest.descheduled(VcpuId::BOOT);
            let descheduled: u64 = intervals.iter().map(|interval| interval.descheduled_ns).sum();
            assert!(intervals.len() >= TIMES && descheduled >= 20_000_000 * TIMES as u64, "{intervals:?}");
            let delay = after.account.unwrap().since(before.account.unwrap()).run_delay_ns;
            let discarded = after.discarded_ns - before.discarded_ns;
            let steal = record.steal_ns() - steal_before;
            // Run delay that is discarded, or not yet published after the last pause, accrued at
            // rest
            let figures = format!("{publisher}: {steal}, {descheduled}, {delay}");
            assert!(steal >= descheduled && steal <= descheduled + delay, "{figures}");
            assert!(steal + discarded + 5_000_000 >= descheduled + delay, "{figures}");
            end_guest(guest);
        });
    }
}

#[test]
fn paused_vcpus_are_unmarked_and_their_records_untouched_without_bpf() {
    const PUBLISHERS: [PublisherKind; 3] =
        [PublisherKind::BpfClassic, PublisherKind::Perf, PublisherKind::Monitor];
    for publisher in PUBLISHERS.into_iter().filter(|publisher| has_publisher(*publisher)) {
        alone(|| {
            // One of the two has just lost the CPU when it is paused, half of the time
            let config = guest(2, publisher, "job=watch warmup_ms=5 duration_ms=60000");
            let guest = start_window(&config.on(cpus().first(1)));
            for _ in 0..50 {
                thread::sleep(Duration::from_millis(7));
                let paused = guest.vm().pause().expect("nothing else pauses the guest");
                let snapshots = guest.vm().snapshot(&paused);
                let records: Vec<_> = snapshots.iter().map(|snapshot| record_of(&guest, snapshot)).collect();
                let before: Vec<_> = records.iter().map(|record| record.bytes()).collect();
                assert!(records.iter().all(|record| record.preempted() == 0), "{publisher}");
                thread::sleep(Duration::from_millis(1));
                let after: Vec<_> = records.iter().map(|record| record.bytes()).collect();
                guest.vm().resume(paused);
                assert_eq!(before, after, "{publisher}");
            }
            end_guest(guest);
        });
    }
}

#[test]
fn injected_fault_is_made_and_counted_around_each_publisher() {
    needs!(two_cpus);
    let counts = |result: &RunResult| {
        let counts = result.vcpus.iter().map(|vcpu| vcpu.faults.expect("it counts"));
        counts.collect::<Vec<_>>()
    };
    for publisher in [PublisherKind::Bpf, PublisherKind::Perf] {
        if !has_publisher(publisher) {
            continue;
        }
        judge_undisturbed(|| {
            let (result, byte) = watch(publisher, Some("drop=1"));
            assert_eq!((byte.other_set, byte.own_set), (0, 0), "{publisher}");
            let faults = counts(&result);
            let all_dropped = faults.iter().all(|faults| faults.sets > 10 && faults.dropped == faults.sets);
            assert!(all_dropped, "{faults:?}");
            assert_window_steal_is_run_delay(&result);
        });
        judge_undisturbed(|| {
            let (result, byte) = watch(publisher, Some("drop=0.5,seed=3"));
            assert!((0.1..0.9).contains(&byte.other_share()), "{publisher}: {byte:?}");
            let faults = counts(&result);
            assert!(faults.iter().all(|faults| (1..faults.sets).contains(&faults.dropped)), "{faults:?}");
        });
        judge_undisturbed(|| {
            let (result, byte) = watch(publisher, Some("stick"));
            assert!(byte.own_set > byte.own_samples / 2, "{publisher}: {byte:?}");
            assert!(counts(&result).iter().all(|faults| faults.stuck > 0));
        });
    }
}

#[test]
fn faults_of_a_publisher_in_the_kernel_or_of_none_are_refused() {
    needs!(kvm);
    for publisher in ["kernel", "off"] {
        let ended = end_of(&mut vmm_run(["--vcpus", "1", "--publisher", publisher, "--faults", "drop=1"]));
        assert_eq!(ended.status, Some(1), "{ended:?}");
        assert!(
            ended.stderr.contains("Cannot inject faults") && ended.stderr.lines().count() == 1,
            "{ended:?}"
        );
    }
    let ended = end_of(&mut vmm_run(["--vcpus", "1", "--faults", "drop=2"]));
    assert_eq!(ended.status, Some(2), "{ended:?}");
    assert!(ended.stderr.contains("is not a fault"), "{ended:?}");
}

/// A user without capabilities, but in the group of `/dev/kvm`.
#[test]
fn unprivileged_user_of_kvm_runs_guests_and_the_output_names_what_is_not_seen() {
    needs!(kvm, program("unshare"), program("setpriv"));
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
        return skip(&format!("the test cannot drop its rights: {}", ended.stderr.trim()));
    }
    assert_eq!(ended.status, Some(0), "{ended:?}");
    let found = ["publisher perf (not bpf: ", "publisher monitor (not bpf: "];
    assert!(found.iter().any(|found| ended.stdout.contains(found)), "{ended:?}");
    assert!(ended.stdout.contains("CAP_BPF"), "the output names the cure: {ended:?}");
    assert!(
        ended.stdout.lines().any(|line| line.starts_with("Publisher p")),
        "the output names what is not seen: {ended:?}"
    );
    let ended = as_nobody(&["--vcpus", "1", "--publisher", "bpf", "--job", "reset"]);
    assert_eq!(ended.status, Some(1), "{ended:?}");
}

#[test]
fn lost_switches_of_a_publisher_without_a_program_are_refused() {
    needs!(kvm);
    let ended = end_of(&mut vmm_run(["--vcpus", "1", "--publisher", "monitor", "--faults", "lose_every=2"]));
    assert_eq!(ended.status, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("only a BPF program sees each of them"), "{ended:?}");
}
