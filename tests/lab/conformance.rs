//! The 31 assertions of the steal-time protocol, each a test of the BPF publisher on KVM.
//!
//! The suite runs once for all of them. The in-kernel publisher must keep the assertions that do
//! not depend on the byte: otherwise our reading of the ABI is wrong.

use std::io;
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;

use host::facts::HostFacts;
use lab::conformance::{self, Conformance, Plan, Subject, Verdict};
use protocol::payload::conformance::Assertion;
use steal_time::publisher::PublisherKind;

use crate::support::{
    alone, cpus, end_of, judge_undisturbed, kill, measure_undisturbed, needs, skip, start, unjudged, vmm_lab,
    wait_for, wait_for_cpu_time,
};

const BPF: Subject = Subject::Publisher(PublisherKind::Bpf);
const CLASSIC: Subject = Subject::Publisher(PublisherKind::BpfClassic);
const KERNEL: Subject = Subject::Publisher(PublisherKind::Kernel);

/// The verdicts on one subject, and what disturbed the host meanwhile.
type Judged = (Conformance, Option<String>);

/// Runs the suite on one subject, once for all tests.
fn judged(subject: Subject) -> &'static Judged {
    static JUDGED: [OnceLock<Judged>; 3] = [const { OnceLock::new() }; 3];
    let index = [BPF, CLASSIC, KERNEL].iter().position(|known| *known == subject).expect("one of three");
    JUDGED[index].get_or_init(|| {
        let plan = Plan { host: HostFacts::probe(), cpus: cpus(), subjects: vec![subject] };
        let run = || conformance::run(&plan, |_| {}).expect("the suite can be run");
        let judged = measure_undisturbed(run, |conformance| {
            let holds = |assertion| keeps(conformance, subject, assertion).is_ok();
            ASSERTED.iter().find(|(known, _)| *known == subject).is_some_and(|(_, except)| {
                Assertion::ALL.iter().filter(|assertion| !except.contains(assertion)).all(|it| holds(*it))
            })
        });
        eprintln!("{}", judged.0);
        judged
    })
}

/// What a subject need not keep.
const ASSERTED: [(Subject, &[Assertion]); 3] =
    [(BPF, &[]), (CLASSIC, &OF_THE_MOMENT), (KERNEL, &OF_THE_BYTE)];

/// Whether `subject` keeps `assertion`, or why not.
fn keeps(conformance: &Conformance, subject: Subject, assertion: Assertion) -> Result<(), String> {
    match conformance.verdict(subject, assertion).expect("the suite tries it") {
        Verdict::Held { times: 0 } if subject == BPF => Err(format!("{assertion} never held")),
        Verdict::Broken { why } => Err(format!("{assertion}: {why}")),
        Verdict::Unjudged { why } if subject == BPF && cpus().count() > 1 => {
            Err(format!("{assertion} was not judged: {why}"))
        }
        // Some are seen only from a second CPU, and the MSR of KVM's publisher cannot be hidden
        Verdict::Held { .. } | Verdict::Unjudged { .. } => Ok(()),
    }
}

/// Asserts that `subject` keeps `assertion`.
fn assert_kept(subject: Subject, assertion: Assertion) {
    let (conformance, disturbance) = judged(subject);
    match (keeps(conformance, subject, assertion), disturbance) {
        (Ok(()), _) => {}
        (Err(why), Some(disturbance)) => unjudged(&format!("{why} ({disturbance})")),
        (Err(why), None) => panic!("{why}"),
    }
}

/// Asserts that the BPF publisher keeps `assertion`.
fn holds(assertion: Assertion) {
    needs!(bpf);
    assert_kept(BPF, assertion);
    match judged(BPF).0.verdict(BPF, assertion) {
        Some(Verdict::Unjudged { why }) if cpus().count() == 1 => skip(&why),
        _ => {}
    }
}

/// The in-kernel publisher's use of the byte differs from host to host.
const OF_THE_BYTE: [Assertion; 5] = [
    Assertion::ByteAlone,
    Assertion::PreemptedIsSeen,
    Assertion::ByteIsOneOrZero,
    Assertion::WholeByteCounts,
    Assertion::BlockedIsNotPreempted,
];

/// The classic program publishes steal when the vCPU leaves the guest. After a nap, the guest may
/// go on before.
const OF_THE_MOMENT: [Assertion; 6] = [
    Assertion::ReservedBitsFault,
    Assertion::MoveLeavesTheOld,
    Assertion::Isolated,
    Assertion::OnlyTheWords,
    Assertion::VersionGrows,
    Assertion::PreemptedIsSeen,
];

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
fn a06_address_outside_ram_is_accepted_in_silence() {
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
fn a11_msr_in_kvm_stays_zero() {
    holds(Assertion::OneWriter);
}

#[test]
fn a12_only_the_fields_of_a_record_are_written() {
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
fn a15_odd_version_is_repaired() {
    holds(Assertion::OddIsMended);
}

#[test]
fn a16_reader_never_sees_steal_decrease() {
    holds(Assertion::NeverTorn);
}

#[test]
fn a17_byte_changes_neither_version_nor_steal() {
    holds(Assertion::ByteAlone);
}

#[test]
fn a18_steal_never_decreases() {
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
fn in_kernel_publisher_keeps_what_does_not_depend_on_the_byte() {
    needs!(kvm);
    for assertion in Assertion::ALL.iter().filter(|assertion| !OF_THE_BYTE.contains(assertion)) {
        assert_kept(KERNEL, *assertion);
    }
}

#[test]
fn classic_program_keeps_what_does_not_depend_on_the_moment_of_publication() {
    needs!(bpf);
    for assertion in Assertion::ALL.iter().filter(|assertion| !OF_THE_MOMENT.contains(assertion)) {
        assert_kept(CLASSIC, *assertion);
    }
}

#[test]
fn suite_that_is_interrupted_prints_the_verdicts_it_has() {
    needs!(bpf);
    alone(|| {
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
    needs!(bpf);
    judge_undisturbed(|| {
        let folder = tempfile::tempdir().unwrap();
        let json = folder.path().join("verdicts.json");
        let command =
            ["conformance", "--publishers", "bpf,kernel", "--tap", "--json", json.to_str().unwrap()];
        let ended = alone(|| end_of(&mut vmm_lab(command)));
        let broken: Vec<_> = ended.stdout.lines().filter(|line| line.contains("message:")).collect();
        assert_eq!(ended.status, Some(0), "{broken:?} {}", ended.stderr);
        assert!(
            ended.stdout.starts_with("TAP version 14\n1..62\nok 1 - bpf: 01 feature-offered\n"),
            "{ended:?}"
        );
        let points =
            ended.stdout.lines().filter(|line| line.starts_with("ok ") || line.starts_with("not ok "));
        assert_eq!(points.count(), 62);
        let document: serde_json::Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
        assert_eq!(document["columns"][0]["assertions"].as_array().map(Vec::len), Some(31));
    });
}
