//! A thousand short guests in a row, and what is left of them: nothing.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on says so and fails"
)]

mod support;

use std::collections::HashSet;
use std::fs;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use protocol::VcpuId;
use support::bpf_ids::Id;
use support::{end_of, guest, has_bpf, has_kvm, kill, run, vmm, wait_for};
use vmm::guest::Outcome;
use vmm::publisher::PublisherKind;
use vmm::publisher::bpf::Program;

const GUESTS: usize = 1000;

/// These tests look at all that this process holds: one at a time.
fn alone<R>(test: impl FnOnce() -> R) -> R {
    static LOCK: Mutex<()> = Mutex::new(());
    let _guard = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    test()
}

fn entries(folder: &str) -> usize {
    fs::read_dir(folder).expect("/proc is mounted").count()
}

#[test]
fn thousand_guests_leave_no_descriptor_thread_or_bpf_program() {
    if !has_kvm() {
        return;
    }
    let publisher = if has_bpf() { PublisherKind::Bpf } else { PublisherKind::Kernel };
    alone(|| {
        let config = guest(2, publisher, "job=idle warmup_ms=1 duration_ms=1");
        run(&config);
        let (descriptors, threads) = (entries("/proc/self/fd"), entries("/proc/self/task"));
        let programs = Id::all_programs();
        for round in 0..GUESTS {
            let (run, result) = run(&config);
            assert!(matches!(run.outcome, Outcome::Reset), "guest {round}: {:?}", result.outcome);
        }
        assert_eq!(entries("/proc/self/fd"), descriptors);
        assert_eq!(entries("/proc/self/task"), threads);
        Id::wait_until_gone(&Id::all_programs().difference(&programs).copied().collect());
    });
}

/// What a process holds that has loaded the publisher.
fn held_by_publisher(pid: &str) -> HashSet<Id> {
    let ids = Id::held_by(pid);
    assert!(ids.iter().any(|id| matches!(id, Id::Program(_))), "{ids:?}");
    assert!(ids.iter().any(|id| matches!(id, Id::Map(_))), "{ids:?}");
    assert!(ids.iter().all(|id| id.lives()), "{ids:?}");
    ids
}

#[test]
fn dropped_program_leaves_no_program_and_no_map() {
    if !has_bpf() {
        return;
    }
    alone(|| {
        let program = Program::load(1, 1).expect("it could be loaded before");
        let enrolled = program.enrol_current_thread(VcpuId::BOOT).expect("a fresh thread");
        let ids = held_by_publisher("self");
        drop(enrolled);
        drop(program);
        assert!(Id::held_by("self").is_empty());
        Id::wait_until_gone(&ids);
    });
}

#[test]
fn killed_monitor_leaves_no_program_and_no_map() {
    if !has_bpf() {
        return;
    }
    let args = ["--vcpus", "2", "--publisher", "bpf", "--job", "idle", "--duration-ms", "60000"];
    let mut child = vmm(args).spawn().expect("the monitor starts");
    let pid = child.id().to_string();
    // The links come last.
    while Id::held_by(&pid).iter().filter(|id| matches!(id, Id::Map(_))).count() < 3 {
        thread::sleep(Duration::from_millis(1));
    }
    let ids = held_by_publisher(&pid);
    kill(child.id(), "KILL");
    assert_eq!(wait_for(&mut child), None);
    Id::wait_until_gone(&ids);
    // And the next one starts as if nothing had been.
    assert_eq!(end_of(&mut vmm(["--vcpus", "2", "--publisher", "bpf", "--job", "reset"])).status, Some(0));
}
