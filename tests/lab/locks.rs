//! Every lock in every wait mode at every overcommit: none hangs, all exclude, the figures add up.

use lab::guest::LabRun;
use lab::results::{LockFigures, RunResult};
use protocol::payload::params::{Lock, Wait};
use steal_time::publisher::PublisherKind;
use vmm::supervise::Outcome;

use crate::support::{cpus, guest, judge_undisturbed, needs, run};

/// Runs a guest of `overcommit` vCPUs per CPU that contends as `params` say.
fn contend(overcommit: usize, params: &str) -> (LabRun, RunResult, LockFigures) {
    let vcpus = overcommit * cpus().count();
    let (run, result) = run(&guest(vcpus, PublisherKind::Bpf, &format!("job=contend {params}")));
    // The payload asserts exclusion and ends with status 3 if it is broken. A hang ends by the
    // timeout
    assert!(matches!(run.monitor.outcome, Outcome::Reset), "{overcommit}x, {params}: {:?}", result.outcome);
    let lock = result.window.clone().expect("a window").lock.expect("a lock");
    (run, result, lock)
}

fn all_exclude_at(overcommit: usize) {
    needs!(bpf);
    // With few vCPUs, each runs in a shorter window
    let duration_ms = if overcommit <= 2 { 15 } else { 30 };
    for lock in Lock::ALL {
        for wait in Wait::ALL {
            let params = format!("lock={lock} wait={wait} warmup_ms=10 duration_ms={duration_ms}");
            let (run, _, _) = contend(overcommit, &params);
            let report = run.report.expect("our payload reports");
            let read =
                |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
            let ever: u64 = report.vcpus.iter().map(|vcpu| read(&vcpu.acquisitions_ever)).sum();
            assert_eq!(ever, read(&report.header.sections), "{params}");
            assert!(ever > 0, "{params}");
        }
    }
}

#[test]
fn every_lock_in_every_wait_mode_excludes_at_one_vcpu_per_cpu() {
    all_exclude_at(1);
}

#[test]
fn every_lock_in_every_wait_mode_excludes_at_two_vcpus_per_cpu() {
    all_exclude_at(2);
}

#[test]
fn every_lock_in_every_wait_mode_excludes_at_four_vcpus_per_cpu() {
    all_exclude_at(4);
}

#[test]
fn every_lock_in_every_wait_mode_excludes_at_eight_vcpus_per_cpu() {
    all_exclude_at(8);
}

#[test]
fn several_locks_with_readers_and_varying_times_exclude() {
    needs!(bpf);
    for lock in Lock::ALL {
        contend(
            4,
            &format!(
                "lock={lock} wait=preempted locks=3 readers=40 section_spread=exponential \
                 think_spread=exponential check_every=16 warmup_ms=10 duration_ms=40"
            ),
        );
    }
}

#[test]
fn figures_of_a_lock_add_up() {
    needs!(bpf);
    judge_undisturbed(|| {
        for lock in [Lock::Tas, Lock::Ticket, Lock::Mcs, Lock::Mutex, Lock::PvqHybrid, Lock::Cull] {
            let (_, result, figures) = contend(4, &format!("lock={lock} wait=preempted duration_ms=400"));
            let host = result.window.expect("a window").host;
            assert_eq!(figures.waits.count, figures.acquisitions, "{lock}");
            // A waiter that was woken halted before the window or in it
            let vcpus = result.guest.vcpus as u64;
            assert!(figures.wakes.count <= figures.halts + vcpus, "{lock}: {figures:?}");
            assert!(figures.spurious_wakes <= figures.halts, "{lock}");
            assert!(figures.kicks > 0 && figures.halts > 0, "{lock}: overcommit makes waiters halt");
            // Each vCPU may be preempted once more between the windows of guest and host
            assert!(
                figures.holder_preemptions > 0 && figures.holder_preemptions <= host.preemptions + vcpus,
                "{lock}: {} of {}",
                figures.holder_preemptions,
                host.preemptions
            );
            assert!(figures.shares.wasted <= figures.shares.spin, "{lock}: {:?}", figures.shares);
            assert!(figures.waits_by_time.p50_ns >= figures.waits.p50_ns, "{lock}");
        }
    });
}

#[test]
fn spinning_for_a_preempted_holder_is_wasted_in_wait_mode_spin_only() {
    needs!(bpf);
    judge_undisturbed(|| {
        let (_, _, ignored) = contend(4, "lock=tas wait=spin duration_ms=400");
        let (_, _, used) = contend(4, "lock=tas wait=preempted duration_ms=400");
        assert!(
            ignored.shares.wasted > 10.0 * used.shares.wasted,
            "{:?} and {:?}",
            ignored.shares,
            used.shares
        );
    });
}

#[test]
fn ticket_lock_has_unnamed_holders_and_locks_with_owner_ids_have_none() {
    needs!(bpf);
    judge_undisturbed(|| {
        // Every vCPU enters the queue all the time, and the host preempts some hundred times a
        // second
        let unnamed = |lock: Lock| {
            let (_, _, figures) =
                contend(4, &format!("lock={lock} wait=preempted section_ns=0 think_ns=0 duration_ms=1000"));
            figures.unnamed
        };
        assert!(unnamed(Lock::Ticket) > 0);
        for lock in [Lock::Tas, Lock::Mutex, Lock::OwnerQueue, Lock::Cull] {
            assert_eq!(unnamed(lock), 0, "{lock}");
        }
    });
}

#[test]
fn doorbell_makes_the_monitor_run_the_lock_holder() {
    needs!(bpf);
    judge_undisturbed(|| {
        let (_, result, figures) = contend(4, "lock=tas wait=yield duration_ms=400");
        assert!(figures.yields > 0);
        assert_eq!(figures.halts, 0, "a waiter that yields does not halt");
        let yields: u64 = result.vcpus.iter().map(|vcpu| vcpu.directed_yields).sum();
        // One directed yield is under way at a time; a doorbell meanwhile has no effect
        assert!(
            yields > 0,
            "no directed yield in {} doorbells, with the right to change classes",
            figures.yields
        );
    });
}
