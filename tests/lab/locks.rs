//! Every lock in every wait mode at every overcommit: none hangs, all exclude, the figures add up.

use std::io;
use std::time::Instant;

use lab::guest::LabRun;
use lab::results::{LockFigures, RunResult};
use lab::sched::mechanism::{MechanismChoice, MechanismKind};
use lab::sched::{LockEpisode, SchedConfig};

use lab::session::{self, SessionConfig};
use protocol::payload::hints::EpisodeKind;
use protocol::payload::params::{Lock, MAX_LOCKS, Wait};
use steal_time::publisher::PublisherKind;
use vmm::supervise::Outcome;

use crate::support::{LIMIT, alone, cpus, guest, judge_undisturbed, needs, run};

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

/// Runs a guest under a policy that deschedules its vCPUs, and returns its traced lock episodes.
fn episodes(params: &str) -> Vec<LockEpisode> {
    let sched = SchedConfig {
        policy: "rr:slice=2ms".parse().expect("a policy of the catalogue"),
        mechanism: MechanismChoice::Only(MechanismKind::Deschedule),
        seed: 7,
        starvation: LIMIT,
        traces: true,
    };
    let guest = guest(2 * cpus().count(), PublisherKind::Monitor, &format!("job=contend {params}"));
    let config = SessionConfig { guest, guests: 1, sched: Some(sched), cpu_hog: None };
    let run = alone(|| session::run(&config, io::sink, Instant::now())).expect("the guest can be run");
    assert!(matches!(run.guests[0].monitor.outcome, Outcome::Reset), "{params}");
    run.sched.expect("a policy").episodes
}

/// Counts holds, and those that begin before the previous hold of the same lock has ended. `holds`
/// are sorted by their begin.
fn overlapping(holds: &[&LockEpisode]) -> (usize, usize) {
    let mut ends = [0; MAX_LOCKS as usize];
    let mut overlaps = 0;
    for hold in holds {
        let end = &mut ends[usize::from(hold.lock)];
        overlaps += usize::from(hold.from_ns < *end);
        *end = hold.to_ns.max(*end);
    }
    (holds.len(), overlaps)
}

/// Sections that are long enough for a trace. Releases wake parked waiters.
const SECTIONS: &str = "section_ns=15000 think_ns=15000 warmup_ms=10 duration_ms=120";

#[test]
fn trace_of_an_exclusive_lock_has_one_holder_at_a_time() {
    needs!(kvm);
    for lock in Lock::ALL {
        let episodes = episodes(&format!("lock={lock} wait=preempted {SECTIONS}"));
        let mut holds: Vec<_> = episodes.iter().filter(|one| one.kind == EpisodeKind::Held).collect();
        holds.sort_by_key(|hold| (hold.from_ns, hold.to_ns));
        let (count, overlaps) = overlapping(&holds);
        assert!(count > 20, "{lock}: {count} holds");
        assert_eq!(overlaps, 0, "{lock}: of {count} holds");
    }
}

#[test]
fn trace_of_several_locks_names_the_lock_and_the_readers_apart() {
    needs!(kvm);
    let params = "lock=rwsem locks=3 readers=40 wait=preempted section_ns=15000 duration_ms=150";
    let episodes = episodes(params);
    let of = |kind| {
        let mut episodes: Vec<_> = episodes.iter().filter(|one| one.kind == kind).collect();
        episodes.sort_by_key(|episode| (episode.from_ns, episode.to_ns));
        episodes
    };
    let (writes, reads) = (of(EpisodeKind::Held), of(EpisodeKind::Read));
    for lock in 0..3 {
        assert!([&writes, &reads].iter().all(|holds| holds.iter().any(|hold| hold.lock == lock)), "{lock}");
    }
    assert_eq!(overlapping(&writes).1, 0);
    for write in writes {
        let beside = reads
            .iter()
            .find(|read| read.lock == write.lock && read.from_ns < write.to_ns && write.from_ns < read.to_ns);
        assert_eq!(beside, None, "a reader beside {write:?}");
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
                figures.holder_preemptions > 0
                    && figures.holder_preemptions <= host.preemptions.unwrap() + vcpus,
                "{lock}: {} of {}",
                figures.holder_preemptions,
                host.preemptions.unwrap()
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
