//! Every lock, waiting in every way, at every load: none hangs, all exclude, and what they report adds up.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on says so and fails"
)]

#[path = "../support/lab.rs"]
mod support;

use lab::guest::LabRun;
use lab::results::{LockFigures, RunResult};
use protocol::payload::params::{Lock, Wait};
use steal_time::publisher::PublisherKind;
use support::{guest, has_bpf, run};
use vmm::supervise::Outcome;

/// Runs a guest with `load` vCPUs a CPU that contends as `words` say, and gives what it reported and what the lock gave.
fn contend(load: usize, words: &str) -> (LabRun, RunResult, LockFigures) {
    let vcpus = load * support::cpus().count();
    let (run, result) = run(&guest(vcpus, PublisherKind::Bpf, &format!("job=contend {words}")));
    // The payload itself asserts exclusion, and ends with status 3 if it was broken; a hang ends with the time-out.
    assert!(matches!(run.monitor.outcome, Outcome::Reset), "{load}x, {words}: {:?}", result.outcome);
    let lock = result.window.clone().expect("a window").lock.expect("a lock");
    (run, result, lock)
}

fn all_exclude_at(load: usize) {
    if !has_bpf() {
        return;
    }
    for lock in Lock::ALL {
        for wait in Wait::ALL {
            let words = format!("lock={lock} wait={wait} warmup_ms=10 duration_ms=30");
            let (run, _, _) = contend(load, &words);
            let report = run.report.expect("our payload reports");
            let read =
                |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
            let ever: u64 = report.vcpus.iter().map(|vcpu| read(&vcpu.acquisitions_ever)).sum();
            assert_eq!(ever, read(&report.header.sections), "{words}");
            assert!(ever > 0, "{words}");
        }
    }
}

#[test]
fn every_lock_waiting_in_every_way_excludes_at_one_vcpu_a_cpu() {
    all_exclude_at(1);
}

#[test]
fn every_lock_waiting_in_every_way_excludes_at_two_vcpus_a_cpu() {
    all_exclude_at(2);
}

#[test]
fn every_lock_waiting_in_every_way_excludes_at_four_vcpus_a_cpu() {
    all_exclude_at(4);
}

#[test]
fn every_lock_waiting_in_every_way_excludes_at_eight_vcpus_a_cpu() {
    all_exclude_at(8);
}

#[test]
fn several_locks_with_readers_and_times_that_vary_exclude_too() {
    if !has_bpf() {
        return;
    }
    for lock in Lock::ALL {
        contend(
            4,
            &format!(
                "lock={lock} wait=preempted locks=3 readers=40 section_spread=exponential think_spread=exponential \
                 check_every=16 warmup_ms=10 duration_ms=40"
            ),
        );
    }
}

#[test]
fn figures_of_a_lock_add_up() {
    if !has_bpf() {
        return;
    }
    for lock in [Lock::Tas, Lock::Ticket, Lock::Mcs, Lock::Mutex, Lock::PvqHybrid, Lock::Cull] {
        let (_, result, figures) = contend(4, &format!("lock={lock} wait=preempted duration_ms=400"));
        let host = result.window.expect("a window").host;
        assert_eq!(figures.waits.count, figures.acquisitions, "{lock}");
        // Who was woken halted before the window, or in it.
        let vcpus = result.guest.vcpus as u64;
        assert!(figures.wakes.count <= figures.halts + vcpus, "{lock}: {figures:?}");
        assert!(figures.spurious_wakes <= figures.halts, "{lock}");
        assert!(figures.kicks > 0 && figures.halts > 0, "{lock}: the load makes waiters halt");
        // Each vCPU may have been preempted once more between the guest's window and the host's.
        assert!(
            figures.holder_preemptions > 0 && figures.holder_preemptions <= host.preemptions + vcpus,
            "{lock}: {} of {}",
            figures.holder_preemptions,
            host.preemptions
        );
        assert!(figures.shares.wasted <= figures.shares.spin, "{lock}: {:?}", figures.shares);
        assert!(figures.waits_by_time.p50_ns >= figures.waits.p50_ns, "{lock}");
    }
}

#[test]
fn spinning_for_who_does_not_run_is_seen_to_be_wasted_where_nobody_stops_it() {
    if !has_bpf() {
        return;
    }
    let (_, _, ignored) = contend(4, "lock=tas wait=spin duration_ms=400");
    let (_, _, used) = contend(4, "lock=tas wait=preempted duration_ms=400");
    assert!(ignored.shares.wasted > 10.0 * used.shares.wasted, "{:?} and {:?}", ignored.shares, used.shares);
}

#[test]
fn queue_that_is_linked_leaves_vcpus_unnamed_and_words_that_name_their_owner_never_do() {
    if !has_bpf() {
        return;
    }
    // Every vCPU enters the queue again and again, and the host preempts some hundred times a second.
    let unnamed = |lock: Lock| {
        let (_, _, figures) =
            contend(4, &format!("lock={lock} wait=preempted section_ns=0 think_ns=0 duration_ms=2000"));
        figures.unnamed
    };
    assert!(unnamed(Lock::Ticket) > 0);
    for lock in [Lock::Tas, Lock::Mutex, Lock::OwnerQueue, Lock::Cull] {
        assert_eq!(unnamed(lock), 0, "{lock}");
    }
}

#[test]
fn doorbell_rings_for_who_is_waited_for_and_the_monitor_lets_that_one_run() {
    if !has_bpf() {
        return;
    }
    let (_, result, figures) = contend(4, "lock=tas wait=yield duration_ms=400");
    assert!(figures.yields > 0);
    assert_eq!(figures.halts, 0, "who yields does not halt");
    let offers: u64 = result.vcpus.iter().map(|vcpu| vcpu.directed_yields).sum();
    // One is out at a time; who comes meanwhile has only yielded.
    assert!(offers > 0, "who may load BPF may change classes: none of {} was taken", figures.yields);
}
