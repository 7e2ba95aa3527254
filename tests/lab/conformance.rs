//! The 31 assertions of the steal-time protocol, each a test of the BPF publisher on KVM.
//!
//! The suite runs once for all of them. The in-kernel publisher must keep the assertions that do
//! not depend on the byte: otherwise our reading of the ABI is wrong.

use std::io;
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;

use protocol::payload::conformance::Assertion;
use serde_json::Value;

use crate::support::{
    Ended, alone, cpus, end_of, has, kill, measure_undisturbed, needs, skip, start, unjudged, vmm_lab,
    wait_for, wait_for_cpu_time,
};

/// One run of `vmm-lab conformance`.
struct Run {
    ended: Ended,
    document: Value,
    /// What disturbed the host meanwhile.
    disturbance: Option<String>,
}

/// Runs the suite on these publishers.
fn run(publishers: &str) -> Run {
    let command = || {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let json = folder.path().join("verdicts.json");
        let json = json.to_str().expect("temporary folders have plain names");
        let ended =
            end_of(&mut vmm_lab(["conformance", "--publishers", publishers, "--tap", "--json", json]));
        let document = std::fs::read(json).expect("the command writes its results");
        (ended, serde_json::from_slice(&document).expect("JSON"))
    };
    let must_keep =
        || publishers.split(',').flat_map(|publisher| asserted(publisher).map(move |it| (publisher, it)));
    let is_good = |(_, document): &(Ended, Value)| {
        must_keep().all(|(publisher, assertion)| keeps(document, publisher, assertion).is_ok())
    };
    let ((ended, document), disturbance) = measure_undisturbed(command, is_good);
    eprintln!("{}", ended.stdout);
    Run { ended, document, disturbance }
}

/// The run with `publisher`, which all tests share.
fn run_of(publisher: &str) -> &'static Run {
    static OTHERS: OnceLock<Run> = OnceLock::new();
    static CLASSIC: OnceLock<Run> = OnceLock::new();
    match publisher {
        "bpf-classic" => CLASSIC.get_or_init(|| run("bpf-classic")),
        _ => OTHERS.get_or_init(|| run(if has::bpf() { "bpf,kernel" } else { "kernel" })),
    }
}

/// What `publisher` must keep.
fn asserted(publisher: &str) -> impl Iterator<Item = Assertion> + use<> {
    let except: &[Assertion] = match publisher {
        "bpf-classic" => &OF_THE_MOMENT,
        "kernel" => &OF_THE_BYTE,
        _ => &[],
    };
    Assertion::ALL.iter().copied().filter(|assertion| !except.contains(assertion))
}

/// The verdict on `assertion` for `publisher`.
fn verdict<'a>(document: &'a Value, publisher: &str, assertion: Assertion) -> &'a Value {
    let columns = document["columns"].as_array().expect("a column for each publisher");
    let column =
        columns.iter().find(|column| column["subject"] == publisher).expect("the publisher is tested");
    let verdicts = column["assertions"].as_array().expect("a verdict on each assertion");
    verdicts.iter().find(|verdict| verdict["number"] == assertion.number()).expect("the suite tries it")
}

/// Whether `publisher` keeps `assertion`, or why not.
fn keeps(document: &Value, publisher: &str, assertion: Assertion) -> Result<(), String> {
    let verdict = verdict(document, publisher, assertion);
    match verdict["verdict"].as_str() {
        Some("held") if publisher == "bpf" && verdict["times"].as_u64() == Some(0) => {
            Err(format!("{assertion} never held"))
        }
        // Some are seen only from a second CPU, and the MSR of KVM's publisher cannot be hidden
        Some("unjudged") if publisher != "bpf" || cpus().count() == 1 => Ok(()),
        Some("held") => Ok(()),
        _ => Err(format!("{assertion}: {verdict}")),
    }
}

/// Asserts that `publisher` keeps `assertion`.
fn assert_kept(publisher: &str, assertion: Assertion) {
    let Run { document, disturbance, .. } = run_of(publisher);
    match (keeps(document, publisher, assertion), disturbance) {
        (Ok(()), _) => {}
        (Err(why), Some(disturbance)) => unjudged(&format!("{why} ({disturbance})")),
        (Err(why), None) => panic!("{why}"),
    }
}

/// Asserts that the BPF publisher keeps `assertion`.
fn holds(assertion: Assertion) {
    needs!(bpf);
    assert_kept("bpf", assertion);
    let verdict = verdict(&run_of("bpf").document, "bpf", assertion);
    if cpus().count() == 1 && verdict["verdict"] == "unjudged" {
        skip(&verdict["why"].to_string());
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

/// Steal governor v11: possible CPUs that are offline dilute a guest's share of steal. The record
/// of a vCPU that has withdrawn it stops growing.
#[test]
fn a07_write_with_bit_0_clear_stops_publication() {
    holds(Assertion::OffStops);
}

/// Linux c3c28d24d910, 901d3765fa80: after kexec KVM wrote to the record of the kernel before. A
/// record that was moved away from is not written again.
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
fn a11_msr_in_kvm_stays_disabled() {
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

/// autotest issue 417, virt-test issue 728: the recipe "two guests, one CPU: about 50 % steal
/// each". Each of two vCPUs gains as steal what the other runs.
#[test]
fn a21_steal_and_run_time_of_a_shared_cpu_add_up() {
    holds(Assertion::SharedCpuAddsUp);
}

#[test]
fn a22_exits_and_pauses_add_no_steal() {
    holds(Assertion::MonitorAddsNothing);
}

/// Linux 1eff0ada88b4: with PV TLB flush hidden, KVM never cleared the byte, and all vCPUs looked
/// preempted for ever. It is always hidden here, and a vCPU that runs finds its byte clear.
#[test]
fn a23_own_byte_is_never_set() {
    holds(Assertion::OwnByteClear);
}

#[test]
fn a24_preempted_vcpu_is_seen_by_others() {
    holds(Assertion::PreemptedIsSeen);
}

/// Linux efce8422dd53, ca3f969dcb11 (powerpc): an idle vCPU was shown as preempted, so others did
/// not wake it at once. Linux 54aa83c90198, 118964562969: the byte was set when the vCPU did not
/// want to run. The byte of a halted vCPU stays clear.
#[test]
fn a25_blocked_vcpu_is_not_preempted() {
    holds(Assertion::BlockedIsNotPreempted);
}

/// Linux 6cd88243c7e0 (CVE-2022-39189): a byte that was set in mid-instruction made guests skip TLB
/// flushes, asked for by bit 1. That feature is not offered, and a guest's bit 1 is cleared when
/// the vCPU runs.
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

/// Linux 54aa83c90198, 118964562969: KVM dirtied a record's page after the machine had stopped.
/// Nothing is written while a machine is paused.
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
    asserted("kernel").for_each(|assertion| assert_kept("kernel", assertion));
}

#[test]
fn classic_program_keeps_what_does_not_depend_on_the_moment_of_publication() {
    needs!(bpf);
    asserted("bpf-classic").for_each(|assertion| assert_kept("bpf-classic", assertion));
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
    let Run { ended, document, .. } = run_of("bpf");
    let is_kept = asserted("bpf").all(|assertion| keeps(document, "bpf", assertion).is_ok());
    assert_eq!(ended.status == Some(0), is_kept, "{ended:?}");
    let first = "TAP version 14\n1..62\nok 1 - bpf: 01 feature-offered\n";
    assert!(ended.stdout.starts_with(first), "{ended:?}");
    let points = ended.stdout.lines().filter(|line| line.starts_with("ok ") || line.starts_with("not ok "));
    assert_eq!(points.count(), 62);
    assert_eq!(document["columns"][0]["assertions"].as_array().map(Vec::len), Some(31));
}
