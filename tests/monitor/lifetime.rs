//! A publisher leaves nothing in the kernel, however its process ends.

use std::collections::HashSet;
use std::sync::PoisonError;
use std::thread;
use std::time::Duration;

use crate::support::bpf_ids::Id;
use crate::support::{alone, end_of, has, kill, needs, start, vmm_run, wait_for};
use protocol::VcpuId;
use steal_time::bpf::Program;

/// Programs that the publisher loads: one at the context switch, and two that heal a stale byte.
const PROGRAMS: usize = 3;

/// The BPF ids of a process that has loaded the publisher.
fn held_by_publisher(pid: &str) -> HashSet<Id> {
    let ids = Id::held_by(pid);
    assert!(ids.iter().any(|id| matches!(id, Id::Program(_))), "{ids:?}");
    assert!(ids.iter().any(|id| matches!(id, Id::Map(_))), "{ids:?}");
    assert!(ids.iter().all(|id| id.lives()), "{ids:?}");
    ids
}

#[test]
fn dropped_program_leaves_no_program_and_no_map() {
    needs!(bpf);
    alone(|| {
        let _no_probe = has::PROBE.lock().unwrap_or_else(PoisonError::into_inner);
        let program = Program::load(1, 1).expect("it was loaded before");
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
    needs!(bpf);
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let json = folder.path().join("run.json");
    let json = json.to_str().expect("temporary folders have plain names");
    let args =
        ["--vcpus", "2", "--publisher", "bpf", "--job", "idle", "--duration-ms", "60000", "--json", json];
    let child = start(&mut vmm_run(args));
    let pid = child.id().to_string();
    // The kill may come during loading or after it. There must be something to leave behind
    while Id::held_by(&pid).iter().filter(|id| matches!(id, Id::Program(_))).count() < PROGRAMS {
        thread::sleep(Duration::from_millis(1));
    }
    let ids = held_by_publisher(&pid);
    kill(child.id(), "KILL");
    assert_eq!(wait_for(child), None);
    Id::wait_until_gone(&ids);
    assert_eq!(folder.path().read_dir().expect("the folder is there").count(), 0);
    // The next monitor starts as usual
    assert_eq!(
        end_of(&mut vmm_run(["--vcpus", "2", "--publisher", "bpf", "--job", "reset"])).status,
        Some(0)
    );
}
