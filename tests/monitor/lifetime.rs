//! What a publisher leaves behind, however it ends: nothing.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on says so and fails"
)]

#[path = "../support/lab.rs"]
mod support;

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use protocol::VcpuId;
use steal_time::bpf::Program;
use support::bpf_ids::Id;
use support::{end_of, has_bpf, kill, start, vmm_run, wait_for};

/// Programs that the publisher loads: one for the switch, and one for each of the two places where a byte is healed.
const PROGRAMS: usize = 3;

/// These tests look at all that a process holds of BPF: one at a time.
fn alone<R>(test: impl FnOnce() -> R) -> R {
    static LOCK: Mutex<()> = Mutex::new(());
    let _guard = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    test()
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
        let attached = program.attach_current_thread(VcpuId::BOOT).expect("a fresh thread");
        let ids = held_by_publisher("self");
        drop(attached);
        drop(program);
        assert!(Id::held_by("self").is_empty());
        Id::wait_until_gone(&ids);
    });
}

#[test]
fn killed_monitor_leaves_no_program_no_map_and_no_file() {
    if !has_bpf() {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let json = folder.path().join("run.json");
    let json = json.to_str().expect("temporary folders have plain names");
    let args =
        ["--vcpus", "2", "--publisher", "bpf", "--job", "idle", "--duration-ms", "60000", "--json", json];
    let child = start(&mut vmm_run(args));
    let pid = child.id().to_string();
    // Killed in the middle of loading or after it, it must not matter; but there must be something to leave behind.
    while Id::held_by(&pid).iter().filter(|id| matches!(id, Id::Program(_))).count() < PROGRAMS {
        thread::sleep(Duration::from_millis(1));
    }
    let ids = held_by_publisher(&pid);
    kill(child.id(), "KILL");
    assert_eq!(wait_for(child), None);
    Id::wait_until_gone(&ids);
    assert_eq!(folder.path().read_dir().expect("the folder is there").count(), 0);
    // And the next one starts as if nothing had been.
    assert_eq!(
        end_of(&mut vmm_run(["--vcpus", "2", "--publisher", "bpf", "--job", "reset"])).status,
        Some(0)
    );
}
