//! The 31 assertions of the steal-time protocol, each a test: our publisher keeps it, on the real KVM.
//!
//! The suite is played once for all of them. What KVM's own publisher makes of an assertion is printed beside; it must
//! keep those that do not hang on the byte, or we have misread the ABI.

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
use std::sync::OnceLock;
use std::time::Duration;

use host::facts::HostFacts;
use lab::conformance::{self, Conformance, Plan, Subject, Verdict};
use protocol::payload::conformance::Assertion;
use steal_time::publisher::PublisherKind;
use support::{cpus, end_of, has_bpf, has_kvm, kill, skip, start, vmm_lab, wait_for, wait_for_cpu_time};

const BPF: Subject = Subject::Publisher(PublisherKind::Bpf);
const CLASSIC: Subject = Subject::Publisher(PublisherKind::BpfClassic);
const KERNEL: Subject = Subject::Publisher(PublisherKind::Kernel);

/// What came of all assertions, tried once.
fn conformance() -> &'static Conformance {
    static CONFORMANCE: OnceLock<Conformance> = OnceLock::new();
    CONFORMANCE.get_or_init(|| {
        let subjects = if has_bpf() { vec![BPF, CLASSIC, KERNEL] } else { vec![KERNEL] };
        let plan = Plan { host: HostFacts::probe(), cpus: cpus(), subjects };
        let conformance =
            support::alone(|| conformance::run(&plan, |_| {})).expect("the suite can be played");
        eprintln!("{conformance}");
        conformance
    })
}

/// Our publisher keeps `assertion`.
fn holds(assertion: Assertion) {
    if !has_bpf() {
        return;
    }
    match conformance().verdict(BPF, assertion).expect("it was tried") {
        Verdict::Held { times } => assert!(times > 0),
        Verdict::Broken { why } => panic!("{assertion}: {why}"),
        // What is seen only from another CPU cannot be seen where there is none.
        Verdict::Unjudged { why } if cpus().count() == 1 => skip(&why),
        Verdict::Unjudged { why } => panic!("{assertion} was not judged: {why}"),
    }
}

#[test]
fn a01_feature_is_offered_exactly_when_it_is_on() {
    holds(Assertion::FeatureOffered);
}

#[test]
fn a02_msr_of_an_absent_feature_faults() {
    holds(Assertion::AbsentFaults);
}

#[test]
fn a03_msr_starts_at_zero() {
    holds(Assertion::StartsAtZero);
}

#[test]
fn a04_msr_reads_back_what_was_written() {
    holds(Assertion::ReadsBack);
}

#[test]
fn a05_reserved_bits_fault_and_change_nothing() {
    holds(Assertion::ReservedBitsFault);
}

#[test]
fn a06_address_outside_ram_is_taken_in_silence() {
    holds(Assertion::OutsideRamIsSilent);
}

#[test]
fn a07_write_with_bit_0_clear_stops_publication() {
    holds(Assertion::OffStops);
}

#[test]
fn a08_move_leaves_the_old_record_alone() {
    holds(Assertion::MoveLeavesTheOld);
}

#[test]
fn a09_publication_writes_nothing_outside_its_record() {
    holds(Assertion::Isolated);
}

#[test]
fn a10_init_clears_the_msr_and_stops_publication() {
    holds(Assertion::InitClears);
}

#[test]
fn a11_kvm_s_own_msr_stays_zero() {
    holds(Assertion::OneWriter);
}

#[test]
fn a12_only_the_words_of_a_record_are_written() {
    holds(Assertion::OnlyTheWords);
}

#[test]
fn a13_version_is_even_for_its_owner() {
    holds(Assertion::VersionEven);
}

#[test]
fn a14_version_grows_and_wraps_around() {
    holds(Assertion::VersionGrows);
}

#[test]
fn a15_odd_version_is_mended() {
    holds(Assertion::OddIsMended);
}

#[test]
fn a16_reader_never_sees_steal_go_down() {
    holds(Assertion::NeverTorn);
}

#[test]
fn a17_byte_changes_neither_version_nor_steal() {
    holds(Assertion::ByteAlone);
}

#[test]
fn a18_steal_never_goes_back() {
    holds(Assertion::StealNeverBack);
}

#[test]
fn a19_steal_is_the_run_delay() {
    holds(Assertion::StealIsRunDelay);
}

#[test]
fn a20_halting_adds_no_steal() {
    holds(Assertion::HaltIsNoSteal);
}

#[test]
fn a21_steal_and_run_time_of_a_shared_cpu_add_up() {
    holds(Assertion::SharedCpuAddsUp);
}

#[test]
fn a22_exits_and_pauses_add_no_steal() {
    holds(Assertion::MonitorAddsNothing);
}

#[test]
fn a23_own_byte_is_never_set() {
    holds(Assertion::OwnByteClear);
}

#[test]
fn a24_preempted_vcpu_is_seen_by_others() {
    holds(Assertion::PreemptedIsSeen);
}

#[test]
fn a25_blocked_vcpu_is_not_preempted() {
    holds(Assertion::BlockedIsNotPreempted);
}

#[test]
fn a26_byte_is_one_or_zero_and_additions_are_consumed() {
    holds(Assertion::ByteIsOneOrZero);
}

#[test]
fn a27_whole_byte_counts_for_the_check() {
    holds(Assertion::WholeByteCounts);
}

#[test]
fn a28_check_keeps_all_registers() {
    holds(Assertion::CheckKeepsRegisters);
}

#[test]
fn a29_msr_and_steal_survive_save_and_restore() {
    holds(Assertion::SurvivesRestore);
}

#[test]
fn a30_paused_machine_is_untouched() {
    holds(Assertion::PausedIsUntouched);
}

#[test]
fn a31_nothing_is_written_after_the_end() {
    holds(Assertion::NothingAfterTheEnd);
}

#[test]
fn kvm_s_own_publisher_keeps_what_does_not_hang_on_the_byte() {
    // What KVM does with the byte differs from host to host, and it was never meant to tell what we tell of it.
    const OF_THE_BYTE: [Assertion; 5] = [
        Assertion::ByteAlone,
        Assertion::PreemptedIsSeen,
        Assertion::ByteIsOneOrZero,
        Assertion::WholeByteCounts,
        Assertion::BlockedIsNotPreempted,
    ];
    if !has_kvm() {
        return;
    }
    for assertion in Assertion::ALL.iter().filter(|assertion| !OF_THE_BYTE.contains(assertion)) {
        let verdict = conformance().verdict(KERNEL, *assertion).expect("it was tried");
        assert!(!matches!(verdict, Verdict::Broken { .. }), "{assertion}: {verdict:?}");
    }
}

#[test]
fn classic_program_keeps_what_does_not_hang_on_the_moment_that_steal_is_told() {
    // It is told when the vCPU leaves the guest, which after a nap need not be before the guest goes on.
    const OF_THE_MOMENT: [Assertion; 6] = [
        Assertion::ReservedBitsFault,
        Assertion::MoveLeavesTheOld,
        Assertion::Isolated,
        Assertion::OnlyTheWords,
        Assertion::VersionGrows,
        Assertion::PreemptedIsSeen,
    ];
    if !has_bpf() {
        return;
    }
    for assertion in Assertion::ALL.iter().filter(|assertion| !OF_THE_MOMENT.contains(assertion)) {
        let verdict = conformance().verdict(CLASSIC, *assertion).expect("it was tried");
        assert!(!matches!(verdict, Verdict::Broken { .. }), "{assertion}: {verdict:?}");
    }
}

#[test]
fn suite_that_is_interrupted_prints_the_verdicts_it_has() {
    if !has_bpf() {
        return;
    }
    support::alone(|| {
        let mut child = start(vmm_lab(["conformance"]).stdout(Stdio::piped()).stderr(Stdio::null()));
        wait_for_cpu_time(&child, Duration::from_millis(800));
        kill(child.id(), "INT");
        let printed = io::read_to_string(child.take_stdout().expect("it is piped")).expect("text");
        assert_eq!(wait_for(child), Some(130), "{printed}");
        let row = printed.lines().find(|line| line.contains("starts-at-zero")).expect("a table");
        assert_eq!(row.split_ascii_whitespace().collect::<Vec<_>>(), ["3", "starts-at-zero", "1"]);
        assert!(printed.contains("Interrupted"), "{printed}");
    });
}

#[test]
fn command_prints_tap_and_writes_the_document() {
    if !has_bpf() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("verdicts.json");
    let command = ["conformance", "--publishers", "bpf,kernel", "--tap", "--json", json.to_str().unwrap()];
    let ended = support::alone(|| end_of(&mut vmm_lab(command)));
    let broken: Vec<_> = ended.stdout.lines().filter(|line| line.contains("message:")).collect();
    assert_eq!(ended.status, Some(0), "{broken:?} {}", ended.stderr);
    assert!(ended.stdout.starts_with("TAP version 14\n1..62\nok 1 - bpf: 01 feature-offered\n"), "{ended:?}");
    let points = ended.stdout.lines().filter(|line| line.starts_with("ok ") || line.starts_with("not ok "));
    assert_eq!(points.count(), 62);
    let document: serde_json::Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    assert_eq!(document["columns"][0]["assertions"].as_array().map(Vec::len), Some(31));
}
