//! Bad input ends with status 1 or 2, one line that names the thing and the cure, and no results.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::support::elf::{Segment, executable};
use crate::support::{Ended, Fixture, cpus, end_of, has, needs, skip, vmm_lab};

/// Asserts that the lab refuses these arguments with this status and one line with all of `words`.
fn refuses(args: &[&str], status: i32, words: &[&str]) {
    complains(&end_of(&mut vmm_lab(with_command(args))), status, words);
}

/// `args`, after the command `run` if they begin with options of a guest.
fn with_command<'a>(args: &[&'a str]) -> Vec<&'a str> {
    let is_guest = args.first().is_some_and(|first| first.starts_with("--") && *first != "--json");
    is_guest.then_some("run").into_iter().chain(args.iter().copied()).collect()
}

fn complains(ended: &Ended, status: i32, words: &[&str]) {
    assert_eq!(ended.status, Some(status), "{ended:?}");
    assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    assert_eq!(ended.stdout, "", "{ended:?}");
    for word in words {
        assert!(ended.stderr.contains(word), "{word:?} is not in {ended:?}");
    }
}

/// Asserts that the monitor refuses this payload.
fn refuses_payload(payload: &[u8], words: &[&str]) {
    let file = Fixture::file("payload.bin", payload);
    if has::kvm() {
        refuses(&["--vcpus", "1", "--publisher", "off", "--payload", file.arg()], 1, words);
    }
}

#[test]
fn vcpus_out_of_range_are_refused_with_the_range() {
    refuses(&["--vcpus", "0"], 2, &["1 to 255", "0"]);
    refuses(&["--vcpus", "256"], 2, &["1 to 255", "256"]);
    refuses(&["--vcpus", "99999999999999999999"], 2, &["--vcpus"]);
    refuses(&["--vcpus", "two"], 2, &["--vcpus", "two"]);
}

#[test]
fn unknown_option_and_unknown_value_are_named() {
    refuses(&["--vcpu", "1"], 2, &["--vcpu"]);
    refuses(&["--lock", "spin"], 2, &["--lock", "spin"]);
    refuses(&["--publisher", "magic"], 2, &["--publisher", "magic", "auto"]);
    refuses(&["--timeout", "0"], 2, &["--timeout"]);
    refuses(&["bench", "everything"], 2, &["everything"]);
    refuses(&["bench", "locks", "--rounds", "10001"], 2, &["--rounds", "1..=10000"]);
    refuses(&["bench", "locks", "--rounds", "18446744073709551615"], 2, &["--rounds"]);
    refuses(&["bench", "startup", "--rounds", "0"], 2, &["--rounds", "1..=10000"]);
    refuses(&["bench", "locks", "--wait", "preempted/0"], 2, &["preempted/0", "turns"]);
    refuses(&["bench", "locks", "--wait", "hope"], 2, &["hope", "spin, threshold"]);
    refuses(&["bench", "locks", "--overcommit", "0"], 2, &["--overcommit", "1..=255"]);
    refuses(&["--vcpus", "1", "--readers", "101"], 2, &["--readers"]);
}

#[test]
fn cpu_that_does_not_exist_is_named_with_those_that_do() {
    refuses(&["--vcpus", "1", "--cpus", "900"], 2, &["CPU 900", &cpus().to_string()]);
    refuses(&["--vcpus", "1", "--cpus", "1-"], 2, &["--cpus", "0,2-3"]);
    refuses(&["bench", "preempted", "--cpus", "900"], 2, &["CPU 900"]);
}

#[test]
fn unknown_parameter_of_the_payload_is_named() {
    needs!(kvm);
    refuses(&["--vcpus", "1", "--cmdline", "lock=spin"], 2, &["lock=spin", "malthusian, cull"]);
    refuses(&["--vcpus", "1", "--cmdline", "quiet"], 2, &["quiet"]);
}

#[test]
fn results_file_that_cannot_be_written_is_refused_before_anything_runs() {
    refuses(&["--json", "/nowhere/results.json"], 1, &["/nowhere/results.json", "No such file"]);
    refuses(&["--vcpus", "1", "--json", "/"], 1, &["Cannot write /"]);
    let endless = ["bench", "locks", "--rounds", "10000", "--json", "/nowhere/results.json"];
    refuses(&endless, 1, &["/nowhere/results.json"]);
}

#[test]
fn run_that_fails_leaves_no_results_file() {
    needs!(kvm);
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("results.json");
    refuses(
        &["--vcpus", "1", "--payload", "/nowhere/x", "--json", json.to_str().unwrap()],
        1,
        &["/nowhere/x"],
    );
    assert!(!json.exists());
}

#[test]
fn missing_payload_is_named() {
    needs!(kvm);
    refuses(&["--vcpus", "1", "--payload", "/nowhere/guest.bin"], 1, &["/nowhere/guest.bin", "No such file"]);
    refuses(&["--vcpus", "1", "--payload", "/dev"], 1, &["/dev", "directory"]);
    refuses(&["--vcpus", "1", "--initrd", "/nowhere/initrd"], 1, &["/nowhere/initrd", "No such file"]);
}

#[test]
fn input_that_is_no_regular_file_is_refused_before_anything_is_waited_for() {
    needs!(kvm);
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let fifo = fifo.to_str().unwrap();
    let replay = |path: &str| format!("replay:file={path}");
    for (path, kind) in
        [(fifo, "FIFO"), ("/dev/zero", "character device"), ("/dev/stdin", "character device")]
    {
        let words = [path, kind, "not a regular file", "copy"];
        refuses(&["--vcpus", "1", "--payload", path], 1, &words);
        refuses(&["--vcpus", "1", "--payload", path, "--flat"], 1, &words);
        refuses(&["--vcpus", "1", "--initrd", path], 1, &words);
        refuses(&["--policy", &replay(path)], 2, &words);
    }
}

#[test]
fn replay_of_a_trace_that_is_too_large_or_has_no_vcpu_is_refused_with_the_cure() {
    let folder = tempfile::tempdir().unwrap();
    let large = folder.path().join("large");
    std::fs::File::create(&large).unwrap().set_len(1 << 40).unwrap();
    let replay = |path: &Path| format!("replay:file={}", path.display());
    refuses(&["--policy", &replay(&large)], 2, &["large", "limit of 64 MiB", "shorten"]);
    let row = "  7.500250 [0003]  worker/1[40/39]  0.000  0.000  0.250\n";
    let trace = Fixture::file("timehist.txt", row.as_bytes());
    refuses(&["--policy", &replay(&trace.path)], 2, &["no thread", "\"worker/1\"", "threads=REGEX"]);
    let broken = format!("{},threads=(", replay(&trace.path));
    refuses(&["--policy", &broken], 2, &["threads=(", "regular expression"]);
    let wild = Fixture::file("wild.csv", b"0,0,0,5\n1,0,0,18446744073709551615\n");
    refuses(&["--policy", &replay(&wild.path)], 2, &["line 2", "a day"]);
}

#[test]
fn payload_that_is_not_a_kernel_is_refused() {
    refuses_payload(b"", &["payload.bin", "empty"]);
    refuses_payload(b"#!/bin/sh\n", &["payload.bin", "neither an ELF file nor a bzImage", "--flat"]);
    refuses_payload(b"\x7fELF", &["payload.bin", "cut short"]);
    let whole = executable(0x10_0000, &[Segment::of(0x10_0000, &[0xf4; 64])]);
    refuses_payload(&whole[..whole.len() - 1], &["payload.bin", "segment 0", "past the end of the file"]);
    refuses_payload(&executable(0x10_0000, &[]), &["no segment"]);
    let mut shared = whole.clone();
    shared[16] = 3;
    refuses_payload(&shared, &["shared object"]);
    let mut foreign = whole;
    foreign[18] = 183;
    refuses_payload(&foreign, &["another processor"]);
}

#[test]
fn payload_that_does_not_fit_is_refused_with_a_size_that_fits() {
    let high = executable(0x0fff_0000, &[Segment::of(0x0fff_0000, &[0xf4])]);
    refuses_payload(&high, &["segment 0", "0xfff0000", "128 MiB", "--memory 256"]);
    let wild = executable(u64::MAX - 1, &[Segment::of(u64::MAX - 1, &[0xf4])]);
    refuses_payload(&wild, &["segment 0"]);
    let wrapping = [Segment { address: u64::MAX - 1, bytes: vec![0xf4], memory_size: 4096 }];
    refuses_payload(&executable(u64::MAX - 1, &wrapping), &["segment 0", "wraps around"]);
}

#[test]
fn segments_that_overlap_and_entries_outside_are_refused() {
    let two = [Segment::of(0x10_0000, &[0xf4; 16]), Segment::of(0x10_000f, &[0xf4; 16])];
    refuses_payload(&executable(0x10_0000, &two), &["segments 0 and 1 overlap"]);
    let one = [Segment::of(0x10_0000, &[0xf4; 16])];
    refuses_payload(&executable(0x10_0010, &one), &["entry 0x100010"]);
    for start in [0x7c00, 0x9_fc00, 0xe_0000, 0xf_0000] {
        let low = [Segment::of(start, &[0xf4; 16])];
        refuses_payload(&executable(start, &low), &["segment 0", "boot structures"]);
    }
}

#[test]
fn memory_too_small_or_too_large_is_refused() {
    needs!(kvm);
    refuses(&["--vcpus", "1", "--memory", "0"], 2, &["--memory"]);
    refuses(&["--vcpus", "1", "--memory", "2"], 1, &["segment", "2 MiB", "--memory"]);
    refuses(&["--vcpus", "1", "--memory", "999999999999"], 2, &["999999999999", "--memory"]);
    refuses(&["--vcpus", "1", "--memory", "18446744073709551615"], 2, &["--memory"]);
    // A size that is valid, but more than the host has
    let ended = end_of(&mut vmm_lab([
        "run",
        "--vcpus",
        "1",
        "--memory",
        "33554432",
        "--job",
        "reset",
        "--publisher",
        "off",
    ]));
    assert!(ended.status == Some(0) || ended.stderr.contains("try a smaller --memory"), "{ended:?}");
}

#[test]
fn workload_options_with_a_foreign_payload_are_refused() {
    let payload = Fixture::file("other.elf", &executable(0x10_0000, &[Segment::of(0x10_0000, &[0xf4])]));
    needs!(kvm);
    let args = ["--vcpus", "1", "--payload", payload.arg(), "--lock", "mutex"];
    refuses(&args, 2, &["lock=mutex", "is not"]);
}

#[test]
fn payload_in_a_missing_folder_cannot_be_written() {
    refuses(&["write-payload", "/nowhere/guest.bin"], 1, &["/nowhere/guest.bin", "No such file"]);
}

/// In a mount namespace where `/dev` is empty.
#[test]
fn without_dev_kvm_the_cure_is_named() {
    needs!(program("unshare"));
    let script = r#"mount -t tmpfs none /dev && exec "$0" run --vcpus 1 --publisher off"#;
    let ended =
        end_of(Command::new("unshare").args(["-m", "sh", "-c", script, env!("CARGO_BIN_EXE_vmm-lab")]));
    if ended.stderr.contains("unshare") || ended.stderr.contains("mount") {
        return skip("only root can make a mount namespace");
    }
    complains(&ended, 1, &["/dev/kvm", "does not exist", "module"]);
}

/// Runs the lab as user `nobody`, from a folder that is open to all.
fn as_nobody(args: &[&str]) -> Option<Ended> {
    if !has::program("setpriv") {
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let copy = folder.path().join("vmm");
    std::fs::copy(env!("CARGO_BIN_EXE_vmm-lab"), &copy).unwrap();
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let ended = end_of(Command::new("setpriv").args(nobody).arg(&copy).args(with_command(args)));
    if ended.stderr.contains("setpriv") {
        skip("only root can become nobody");
        return None;
    }
    Some(ended)
}

#[test]
fn without_permission_for_dev_kvm_the_cure_is_named() {
    let mode = Path::new("/dev/kvm").metadata().map(|metadata| metadata.permissions().mode());
    match mode {
        Ok(mode) if mode & 0o006 != 0 => return skip("/dev/kvm is open to all users"),
        Ok(_) => {}
        Err(_) => return skip("there is no /dev/kvm"),
    }
    if let Some(ended) = as_nobody(&["--vcpus", "1", "--publisher", "off"]) {
        complains(&ended, 1, &["/dev/kvm", "permission denied", "group"]);
    }
}

/// Runs the lab as root without the capabilities for BPF.
fn without_bpf(args: &[&str]) -> Option<Ended> {
    if !has::bpf() || !has::program("setpriv") {
        return None;
    }
    let drop = ["--bounding-set", "-bpf,-perfmon,-sys_admin"];
    let ended = end_of(
        Command::new("setpriv").args(drop).arg(env!("CARGO_BIN_EXE_vmm-lab")).args(with_command(args)),
    );
    if ended.stderr.contains("setpriv") {
        skip("only root can drop capabilities");
        return None;
    }
    Some(ended)
}

#[test]
fn without_bpf_rights_the_cure_is_named() {
    if let Some(ended) = without_bpf(&["--vcpus", "1", "--publisher", "bpf", "--job", "reset"]) {
        complains(&ended, 1, &["BPF", "not permitted", "CAP_BPF", "CAP_PERFMON"]);
    }
}

#[test]
fn without_bpf_rights_auto_takes_the_next_publisher_and_prints_why() {
    if let Some(ended) = without_bpf(&["--vcpus", "1", "--job", "reset"]) {
        assert_eq!(ended.status, Some(0), "{ended:?}");
        assert!(
            ["publisher perf", "publisher monitor"].iter().any(|found| ended.stdout.contains(found)),
            "{ended:?}"
        );
        assert!(ended.stdout.contains("CAP_BPF"), "{ended:?}");
    }
}

#[test]
fn without_bpf_rights_the_suite_judges_the_other_publishers_and_prints_why() {
    if let Some(ended) = without_bpf(&["conformance", "--publishers", "bpf,kernel"]) {
        assert_eq!(ended.status, Some(0), "{ended:?}");
        let row = ended.stdout.lines().find(|line| line.contains("starts-at-zero")).expect("a table");
        let cells: Vec<_> = row.split_ascii_whitespace().collect();
        assert_eq!(cells, ["3", "starts-at-zero", "-", "1"], "the in-kernel publisher is judged");
        let why = ended.stdout.lines().find(|line| line.starts_with("bpf 1-31 ")).expect("a line for bpf");
        assert!(why.contains("not judged") && why.contains("CAP_BPF"), "{why}");
    }
}

#[test]
fn help_and_version_go_to_standard_output() {
    for flag in ["--help", "--version"] {
        let ended = end_of(&mut vmm_lab([flag]));
        assert_eq!((ended.status, ended.stderr.as_str()), (Some(0), ""));
        assert!(ended.stdout.contains("vmm"));
    }
}
