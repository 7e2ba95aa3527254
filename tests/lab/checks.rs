//! The cost of each form of the check to its callers, read from the built payload.

use crate::support::{alone, needs};
use host::cpus::Cpus;
use host::facts::HostFacts;
use lab::bench::checks::code::{self, FormCode};
use lab::runner::Experiment;
use lab::table::Table;
use protocol::payload::params::{Check, Job, Workload};
use steal_time::publisher::PublisherKind;

fn code_of(form: Check) -> FormCode {
    code::of(form).expect("the payload has symbols")
}

#[test]
fn callers_of_each_form_call_it_once_and_are_aligned() {
    let heads = [
        "form",
        "bytes",
        "spin: bytes",
        "pushes",
        "spills",
        "calls",
        "folded: bytes",
        "pushes",
        "spills",
        "calls",
    ];
    let mut table = Table::new(&heads, 1);
    for form in Check::ALL.iter().copied() {
        let FormCode { check, spin, folded } = code_of(form);
        let first = [form.to_string(), check.map_or_else(|| "-".to_owned(), |check| check.bytes.to_string())];
        let caller = |code: code::FunctionCode| {
            [code.bytes.to_string(), code.pushes.to_string(), code.spills.to_string(), code.calls.to_string()]
        };
        table.row(first.into_iter().chain(caller(spin)).chain(caller(folded)));
    }
    println!("{table}");
    for form in Check::ALL.iter().copied() {
        let FormCode { check, spin, folded } = code_of(form);
        let calls = usize::from(form != Check::Inline);
        assert_eq!((spin.calls, folded.calls), (calls, calls), "{form}: each loop checks in one place");
        for function in check.into_iter().chain([spin, folded]) {
            assert!(function.is_aligned, "{form}: alignment must not decide");
        }
    }
}

#[test]
fn check_of_linux_saves_no_register_and_earlier_forms_save_one_two_and_eight() {
    let saved = |form| code_of(form).check.expect("it is called").pushes;
    assert_eq!([Check::Save0, Check::Save1, Check::Save2, Check::Thunk].map(saved), [0, 1, 2, 8]);
    assert_eq!(code_of(Check::Save0).check.map(|check| check.bytes), Some(19));
}

#[test]
fn callee_save_check_costs_its_caller_less_than_a_plain_function() {
    let plain = code_of(Check::Call);
    for form in [Check::Thunk, Check::Save2, Check::Save1, Check::Save0, Check::Pointer] {
        let callee_save = code_of(form);
        assert!(callee_save.spin.pushes < plain.spin.pushes, "{form}: {callee_save:?} against {plain:?}");
        assert!(callee_save.folded.spills < plain.folded.spills, "{form}: {callee_save:?} against {plain:?}");
        assert!(callee_save.folded.bytes < plain.folded.bytes, "{form}: {callee_save:?} against {plain:?}");
    }
}

#[test]
fn every_form_takes_time() {
    needs!(kvm);
    let workload = Workload { job: Job::Checks, ..Workload::DEFAULT };
    let cpus = Cpus::allowed().unwrap();
    let experiment = Experiment { host: HostFacts::probe(), cpus, workload };
    // The second vCPU halts meanwhile
    let result = alone(|| experiment.run(2, PublisherKind::Off, workload)).unwrap();
    let checks = result.window.unwrap().checks;
    let forms: Vec<_> = checks.iter().map(|cost| cost.form).collect();
    let words: Vec<_> = Check::ALL.iter().map(|form| form.name()).chain(["none"]).collect();
    assert_eq!(forms, words);
    for cost in &checks {
        assert!(cost.call_ns > 0.0 && cost.chain_ns > 0.0, "{cost:?}");
        assert_eq!(cost.spin_ns > 0.0 && cost.folded_ns > 0.0, cost.form != "none", "{cost:?}");
    }
}
