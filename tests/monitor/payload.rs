//! The embedded payload: every way to start it, every job, every way to end.

use std::io::{self, Read};
use std::process::Stdio;
use std::time::Duration;

use lab::guest::LabRun;
use lab::results::RunResult;
use protocol::payload::params::Start;
use protocol::payload::report::Report;
use steal_time::publisher::PublisherKind;
use vmm::supervise::Outcome;

use crate::support::elf::{Segment, executable};
use crate::support::{
    Fixture, cpus, end_of, guest, has, judge_undisturbed, kill, needs, run, start, vmm_lab, vmm_run,
    wait_for, wait_for_cpu_time,
};

/// A short measured window.
const SHORT: &str = "warmup_ms=20 duration_ms=60";

fn assert_reset(run: &LabRun, result: &RunResult) {
    assert!(matches!(run.monitor.outcome, Outcome::Reset), "{:?} {:?}", run.monitor.outcome, result.outcome);
}

#[test]
fn guests_of_1_to_255_vcpus_boot_run_and_end() {
    needs!(kvm);
    for vcpus in [1, 2, 16, 64, 255] {
        let (run, result) =
            run(&guest(vcpus, PublisherKind::Off, &format!("job=contend wait=threshold {SHORT}")));
        assert_reset(&run, &result);
        assert_eq!(result.vcpus.len(), vcpus);
        let lock = result.window.expect("the window opens and closes").lock.expect("a lock was held");
        assert!(lock.acquisitions > 0);
    }
}

#[test]
fn guests_of_1_to_255_vcpus_register_their_records() {
    needs!(bpf);
    for vcpus in [1, 2, 16, 64, 255] {
        let (run, result) =
            run(&guest(vcpus, PublisherKind::Bpf, &format!("job=contend wait=preempted {SHORT}")));
        assert_reset(&run, &result);
        // One write of the MSR each, and each thread was seen to be switched in
        assert!(result.vcpus.iter().all(|vcpu| vcpu.exits.msr == 1), "{:?}", result.vcpus);
        assert!(
            result
                .vcpus
                .iter()
                .all(|vcpu| vcpu.publication.is_some_and(|counts| counts.program.sched_in > 0))
        );
    }
}

#[test]
fn vcpus_started_by_sipi_do_the_same_as_those_started_directly() {
    needs!(kvm);
    // With many vCPUs, the boot vCPU sends INIT and SIPI long before the last one is created
    for vcpus in [1, 2, 64] {
        let mut config = guest(vcpus, PublisherKind::Off, &format!("job=contend wait=threshold {SHORT}"));
        config.guest.start = Start::Sipi;
        let (run, result) = run(&config);
        assert_reset(&run, &result);
        assert_eq!(result.guest.entry, "pvh");
        assert!(result.window.is_some_and(|window| window.lock.is_some_and(|lock| lock.acquisitions > 0)));
    }
}

#[test]
fn waiter_halts_for_the_byte_only_if_a_publisher_sets_it() {
    needs!(bpf);
    judge_undisturbed(|| {
        let params = "job=contend lock=tas wait=preempted backstop_ns=0 section_ns=20000 think_ns=1000 \
                      duration_ms=300";
        let seen = |publisher| {
            let (run, result) = run(&guest(4 * cpus().count(), publisher, params));
            assert_reset(&run, &result);
            let lock = result.window.expect("a window").lock.expect("a lock");
            (lock.preempted_seen, lock.halts)
        };
        let (by_bpf, halts) = seen(PublisherKind::Bpf);
        assert!(by_bpf > 0 && halts > 0, "holders are preempted, and waiters see it: {by_bpf}, {halts}");
        assert_eq!(seen(PublisherKind::Off), (0, 0));
    });
}

#[test]
fn msr_assertions_hold_in_the_guest_with_every_publisher() {
    let mut publishers = Vec::new();
    publishers.extend(has::kvm().then_some(PublisherKind::Kernel));
    publishers.extend(has::bpf().then_some(PublisherKind::Bpf));
    for publisher in publishers {
        let (run, result) = run(&guest(2, publisher, "job=conformance scene=msr"));
        assert_reset(&run, &result);
        assert!(result.findings.len() >= 12, "{:?}", result.findings);
        let broken: Vec<_> = result.findings.iter().filter(|finding| finding.broken_at.is_some()).collect();
        assert!(broken.is_empty(), "{publisher}: {broken:?}");
    }
}

#[test]
fn without_a_publisher_the_feature_is_absent() {
    needs!(kvm);
    let (run, result) = run(&guest(1, PublisherKind::Off, "job=conformance scene=absent"));
    assert_reset(&run, &result);
    let numbers: Vec<_> = result.findings.iter().map(|finding| (finding.number, finding.broken_at)).collect();
    assert_eq!(numbers, [(1, None), (2, None)]);
}

#[test]
fn idle_guest_sleeps_and_accrues_no_steal() {
    needs!(bpf);
    judge_undisturbed(|| {
        let (run, result) = run(&guest(2, PublisherKind::Bpf, "job=idle duration_ms=200"));
        assert_reset(&run, &result);
        let window = result.window.expect("a window");
        assert!(window.host.sleeps.unwrap() > 50, "{window:?}");
        let total = window.host.run_ns.unwrap() + window.host.run_delay_ns.unwrap();
        assert!(total < window.length_ns, "two sleeping vCPUs use less than half of two CPUs: {window:?}");
    });
}

#[test]
fn panic_and_exception_end_with_vcpu_place_and_status_3() {
    needs!(kvm);
    for (job, on_stderr, on_console) in [
        ("panic", "vCPU 0: panic at line", "vCPU 0: panicked at guest-payload/src/jobs/mod.rs"),
        ("fault", "vCPU 0: exception 6 at rip 0x4", "vCPU 0: exception 6 (undefined instruction) at rip 0x4"),
    ] {
        for start in ["direct", "sipi"] {
            let ended =
                end_of(&mut vmm_run(["--vcpus", "2", "--publisher", "off", "--job", job, "--start", start]));
            assert_eq!(ended.status, Some(3), "{ended:?}");
            assert!(ended.stderr.contains(on_stderr), "{ended:?}");
            assert!(ended.stdout.contains(on_console), "{ended:?}");
        }
    }
}

/// All vCPUs are up and the warm-up is over by then. The jobs here would take a minute.
const WELL_UNDER_WAY: Duration = Duration::from_millis(600);

#[test]
fn guest_that_times_out_closes_its_window_and_keeps_its_figures() {
    needs!(kvm);
    for job in ["contend wait=threshold", "watch", "idle"] {
        let params = format!("job={job} warmup_ms=20 duration_ms=60000");
        let config = guest(4, PublisherKind::Off, &params).with(|guest| guest.timeout = Some(WELL_UNDER_WAY));
        let (run, result) = run(&config);
        assert!(matches!(run.monitor.outcome, Outcome::TimedOut), "{:?}", result.outcome);
        let window = result.window.expect("the window was closed");
        assert!(window.length_ns < 60_000_000_000, "{window:?}");
        assert!(window.lock.is_none_or(|lock| lock.acquisitions > 0));
        assert!(window.preempted.is_none_or(|byte| byte.other_samples > 0));
    }
}

/// Interrupts the lab after it has used `after` of CPU time; returns its output. Its status is 130.
fn interrupted(args: &[&str], after: Duration) -> String {
    let mut child = start(vmm_lab(args).stdout(Stdio::piped()));
    wait_for_cpu_time(&child, after);
    kill(child.id(), "INT");
    let printed = io::read_to_string(child.take_stdout().expect("it is piped")).expect("text");
    assert_eq!(wait_for(child), Some(130), "{printed}");
    printed
}

#[test]
fn ctrl_c_prints_what_was_measured_so_far() {
    needs!(kvm);
    let args = ["run", "--vcpus", "2", "--publisher", "off", "--wait", "threshold", "--duration-ms", "60000"];
    let printed = interrupted(&args, WELL_UNDER_WAY);
    assert!(printed.contains("acq/s") && printed.contains("Ended early (interrupted)"), "{printed}");
}

#[test]
fn demonstration_that_is_interrupted_prints_the_points_it_has() {
    needs!(kvm);
    // CPU time of two points, of six and of twenty: a disturbed point is measured again
    let mut printed =
        [3, 8, 24].into_iter().map(|after| interrupted(&["--publisher", "kernel"], after * WELL_UNDER_WAY));
    assert!(printed.any(|printed| printed.contains("Interrupted after") && printed.contains("tas")));
}

#[test]
fn bench_that_is_interrupted_ends_with_its_first_run() {
    needs!(bpf, two_cpus);
    assert!(interrupted(&["bench", "preempted"], WELL_UNDER_WAY).contains("Interrupted"));
}

#[test]
fn written_payload_runs_as_the_readme_says() {
    needs!(kvm);
    let folder = tempfile::tempdir().unwrap();
    let payload = folder.path().join("guest.bin");
    let payload = payload.to_str().unwrap();
    assert_eq!(end_of(&mut vmm_lab(["write-payload", payload])).status, Some(0));
    let ended = end_of(&mut vmm_run([
        "--vcpus",
        "4",
        "--payload",
        payload,
        "--cmdline",
        "duration_ms=100 lock=mutex",
    ]));
    assert_eq!((ended.status, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    assert!(ended.stdout.contains("mutex"), "{ended:?}");
}

/// The initial report is zero, so it lies in `.bss`.
#[test]
fn file_of_the_payload_does_not_hold_its_report() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let file = folder.path().join("guest.bin");
    let ended = end_of(&mut vmm_lab(["write-payload", file.to_str().expect("a plain path")]));
    assert_eq!(ended.status, Some(0), "{ended:?}");
    let size = std::fs::metadata(&file).expect("it was written").len();
    assert!(size < size_of::<Report>() as u64, "{size} bytes");
}

#[test]
fn ctrl_c_ends_the_run_and_the_results_are_written() {
    needs!(kvm);
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("run.json");
    // Sends a byte, then spins: mov $0x3f8, %dx; mov $'!', %al; out %al, %dx; jmp .
    let code = [0x66, 0xba, 0xf8, 0x03, 0xb0, b'!', 0xee, 0xeb, 0xfe];
    let payload = Fixture::file("code.elf", &executable(0x10_0000, &[Segment::of(0x10_0000, &code)]));
    for signal in ["INT", "TERM"] {
        let args = ["--vcpus", "3", "--payload", payload.arg(), "--json", json.to_str().unwrap()];
        let mut child = start(vmm_run(args).stdout(Stdio::piped()));
        let mut stdout = child.take_stdout().unwrap();
        let mut first = [0];
        stdout.read_exact(&mut first).unwrap();
        kill(child.id(), signal);
        assert_eq!(wait_for(child), Some(130));
        let document = std::fs::read_to_string(&json).unwrap();
        assert!(document.contains(r#""kind": "interrupted""#), "{document}");
        std::fs::remove_file(&json).unwrap();
    }
}
