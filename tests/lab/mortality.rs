//! Every command ends by itself, whatever it waits for, with the documented status.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::{
    Fixture, end_of, has, kill, needs, start, vmm_lab, vmm_run, wait_for, wait_for_cpu_time,
};

/// CPU time after which a command is well under way.
const UNDER_WAY: Duration = Duration::from_millis(300);

#[test]
fn interrupted_command_ends_with_130_and_prints_that_it_was_interrupted() {
    needs!(bpf, two_cpus);
    let commands: [&[&str]; 8] = [
        &["--publisher", "bpf"],
        &["accuracy"],
        &["conformance"],
        &["doctor"],
        &["bench", "preempted"],
        &["bench", "checks"],
        &["bench", "startup", "--rounds", "1000"],
        &["bench", "switch"],
    ];
    for command in commands {
        let mut running = start(vmm_lab(command).stdout(Stdio::piped()).stderr(Stdio::null()));
        if command == ["bench", "startup", "--rounds", "1000"] {
            std::thread::sleep(UNDER_WAY);
        } else {
            wait_for_cpu_time(&running, UNDER_WAY);
        }
        kill(running.id(), "INT");
        let printed = std::io::read_to_string(running.take_stdout().expect("it is piped")).expect("text");
        assert_eq!(wait_for(running), Some(130), "{command:?}: {printed}");
        assert!(printed.to_lowercase().contains("interrupted"), "{command:?}: {printed}");
    }
}

#[test]
fn scheduled_guests_that_end_early_hold_nothing() {
    needs!(kvm);
    for guests in ["1", "12"] {
        let args = ["--job", "reset", "--policy", "rr", "--guests", guests, "--publisher", "off"];
        let args = args.into_iter().chain(["--timeout", "4"]);
        let ended = end_of(&mut vmm_run(args));
        assert_eq!(ended.status, Some(0), "{ended:?}");
    }
}

#[test]
fn endless_burst_and_slices_of_a_nanosecond_end_with_the_timeout() {
    needs!(kvm);
    let trace = Fixture::file("trace.csv", b"0,0,0,1\n1,0,1,1\n");
    let replay = format!("replay:file={}", trace.arg());
    for option in [["--cpu-hog", "burst=86400s"], ["--policy", &replay]] {
        let args = ["--vcpus", "2", "--publisher", "off", "--duration-ms", "600000", "--timeout", "0.5"];
        let ended = end_of(&mut vmm_run(args.into_iter().chain(option)));
        assert_eq!(ended.status, Some(4), "{option:?}: {ended:?}");
        assert!(ended.stdout.contains("timed out"), "{option:?} ends by itself, with results: {ended:?}");
    }
}

#[test]
fn benched_policy_that_starves_a_vcpu_ends_with_5_and_is_named() {
    needs!(kvm);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let json = folder.path().join("results");
    let rest = ["--publisher", "off", "--cpus", "0", "--lock", "tas", "--overcommit", "2", "--rounds", "1"];
    let args = ["bench", "policies", "--policy", "rr:slice=60s", "--starvation", "0.3", "--json"];
    let path = json.to_str().expect("temporary folders have plain names");
    let window = ["--duration-ms", "3000", "--retries", "0"];
    let ended = end_of(&mut vmm_lab(args.into_iter().chain([path]).chain(rest).chain(window)));
    assert_eq!(ended.status, Some(5), "{ended:?}");
    assert!(ended.stdout.contains("rr:slice=60s, tas, 2x, wide: ended: "), "{ended:?}");
    assert!(fs::read_to_string(&json).expect("text").contains("\"stop_reason\": \""));
}

#[test]
fn doctor_and_accuracy_without_kvm_end_with_1_and_its_error() {
    if !has::program("unshare") {
        return;
    }
    let script = "mount --bind /dev/null /dev/kvm || exit 77; exec \"$0\" \"$1\"";
    for (command, printed) in [("doctor", "Linux"), ("accuracy", "")] {
        let args = ["-m", "sh", "-c", script, env!("CARGO_BIN_EXE_vmm-lab"), command];
        let ended = end_of(Command::new("unshare").args(args));
        if ended.status == Some(77) || ended.stderr.contains("unshare") {
            return crate::support::skip("only root can hide /dev/kvm");
        }
        assert_eq!(ended.status, Some(1), "{ended:?}");
        assert!(ended.stderr.contains("/dev/kvm") && ended.stdout.contains(printed), "{ended:?}");
    }
}
