//! A thousand short guests in a row: none hangs, and nothing is left of any.

mod support;

use std::fs;
use std::thread;
use std::time::Duration;

use support::{end_of, guest, has_bpf, has_kvm, kill, run, vmm, wait_for};
use vmm::guest::Outcome;
use vmm::publisher::PublisherKind;
use vmm::publisher::bpf::loaded_programs;

const GUESTS: usize = 1000;

fn entries(folder: &str) -> usize {
    fs::read_dir(folder).expect("/proc is mounted").count()
}

/// BPF programs go a moment after their last descriptor: the kernel waits for those who may still run them.
fn programs_settle_at(expected: usize) -> bool {
    (0..100).any(|_| {
        let settled = loaded_programs().is_ok_and(|programs| programs <= expected);
        if !settled {
            thread::sleep(Duration::from_millis(50));
        }
        settled
    })
}

#[test]
fn thousand_guests_leave_no_descriptor_thread_or_bpf_program() {
    if !has_kvm() {
        return;
    }
    let publisher = if has_bpf() { PublisherKind::Bpf } else { PublisherKind::Kernel };
    let config = guest(2, publisher, "job=idle warmup_ms=1 duration_ms=1");
    run(&config);
    let (descriptors, threads) = (entries("/proc/self/fd"), entries("/proc/self/task"));
    let programs = loaded_programs().ok();
    for round in 0..GUESTS {
        let (run, result) = run(&config);
        assert!(matches!(run.outcome, Outcome::Reset), "guest {round}: {:?}", result.outcome);
    }
    assert_eq!(entries("/proc/self/fd"), descriptors);
    assert_eq!(entries("/proc/self/task"), threads);
    if let Some(programs) = programs {
        assert!(programs_settle_at(programs), "{:?} programs, {programs} before", loaded_programs());
    }
}

#[test]
fn killed_monitor_leaves_no_bpf_program() {
    if !has_bpf() {
        return;
    }
    let before = loaded_programs().expect("programs can be counted");
    let args = ["--vcpus", "2", "--publisher", "bpf", "--job", "idle", "--duration-ms", "60000"];
    let mut child = vmm(args).spawn().unwrap();
    while loaded_programs().expect("programs can be counted") <= before {
        thread::sleep(Duration::from_millis(1));
    }
    kill(child.id(), "KILL");
    assert_eq!(wait_for(&mut child), None);
    assert!(programs_settle_at(before));
    // And the next one starts as if nothing had been.
    assert_eq!(end_of(&mut vmm(["--vcpus", "2", "--publisher", "bpf", "--job", "reset"])).status, Some(0));
}
