//! Steal over save and restore: onto other threads, and beside other memory images.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use lab::guest::{LabConfig, LabGuest};
use protocol::kvm::Registration;
use steal_time::publisher::PublisherKind;
use steal_time::saved::SavedStealTime;
use vmm::timings::Timings;
use vmm::vm::Paused;

use crate::support::{
    AtRest, LIMIT, alone, cpus, end_guest, guest, has_publisher, needs, start_window, steal_ns,
};

/// Publishers whose steal the monitor saves and restores.
const PUBLISHERS: [PublisherKind; 4] =
    [PublisherKind::Bpf, PublisherKind::BpfClassic, PublisherKind::Perf, PublisherKind::Monitor];

/// A vCPU is late to publish by at most this (ns): `monitor` polls every 10 ms, on a busy CPU.
const LATE_NS: u64 = 30_000_000;

/// Two vCPUs that spin on one CPU until the test closes their window.
fn spinning(publisher: PublisherKind, params: &str) -> LabConfig {
    guest(2, publisher, &format!("job=watch warmup_ms=5 duration_ms=60000 {params}")).on(cpus().first(1))
}

/// Such a guest that registers no record itself, and whose vCPUs have not run.
fn fresh(publisher: PublisherKind) -> (LabGuest, Paused) {
    let config = spinning(publisher, "steal=off");
    LabGuest::start_paused(&config, io::sink(), Timings::since(Instant::now())).expect("the guest starts")
}

/// Lets `guest` run for a while. Returns what was counted before and after.
fn run_for(guest: &LabGuest, ms: u64) -> (Vec<AtRest>, Vec<AtRest>) {
    let before = AtRest::of(guest);
    thread::sleep(Duration::from_millis(ms));
    (before, AtRest::of(guest))
}

/// Asserts that the steal of each vCPU grew by the run delay of its own thread.
fn assert_own_delay(what: &str, (before, after): (Vec<AtRest>, Vec<AtRest>)) {
    for (before, after) in before.iter().zip(&after) {
        let delay = after.run_delay_ns - before.run_delay_ns;
        let steal = after.steal_ns.checked_sub(before.steal_ns).expect("steal never decreases");
        assert!(delay > 1_000_000, "{what}: each waits for the other: {delay} ns");
        assert!(steal.abs_diff(delay) <= LATE_NS, "{what}: steal {steal} ns, run delay {delay} ns");
    }
}

/// Saves `guest`, which runs on.
fn save(guest: &LabGuest) -> SavedStealTime {
    let paused = guest.vm().pause().expect("nothing else pauses it");
    let saved = guest.vm().save_steal_time(&paused).expect("it has not ended");
    guest.vm().resume(paused);
    saved
}

/// The steal in each record of the paused `guest` (ns).
fn steal(guest: &LabGuest, paused: &Paused) -> Vec<u64> {
    guest.vm().snapshot(paused).iter().map(|vcpu| steal_ns(vcpu.record.as_ref())).collect()
}

fn saved_steal(saved: &SavedStealTime) -> Vec<u64> {
    saved.vcpus.iter().map(|vcpu| vcpu.steal_ns).collect()
}

/// Launchpad qemu 1494350, Debian 785557: after `loadvm` the run delay of another thread was taken
/// for the vCPU's, steal overflowed, and the guest showed 100 % steal. Here steal is restored as it
/// was, whether the new threads have waited longer than the old ones or less, and grows by the
/// delay of the new threads only.
#[test]
fn restored_steal_is_the_saved_whatever_the_new_threads_have_waited() {
    needs!(kvm);
    for publisher in PUBLISHERS.into_iter().filter(|publisher| has_publisher(*publisher)) {
        alone(|| {
            let old = start_window(&spinning(publisher, ""));
            thread::sleep(Duration::from_millis(100));
            let saved = save(&old);
            end_guest(old);

            for has_waited in [false, true] {
                let (new, mut paused) = fresh(publisher);
                if has_waited {
                    // Its threads accrue more run delay than was saved, without a record
                    new.vm().resume(paused);
                    assert!(new.wait_for_window(LIMIT), "the window does not open");
                    thread::sleep(Duration::from_millis(400));
                    paused = new.vm().pause().expect("nothing else pauses it");
                    let waited =
                        new.vm().snapshot(&paused)[0].account.expect("/proc is readable").run_delay_ns;
                    assert!(waited > saved.vcpus[0].steal_ns, "{waited} {saved:?}");
                }
                new.vm().restore_steal_time(&paused, &saved).expect("it fits");
                // Nothing is added but the delay in which the thread woke to restore
                for (now, was) in steal(&new, &paused).iter().zip(saved_steal(&saved)) {
                    assert!((was..was + LATE_NS).contains(now), "{publisher}: {now} ns, saved {was} ns");
                }
                new.vm().resume(paused);
                assert!(new.wait_for_window(LIMIT), "the window does not open");
                assert_own_delay(&publisher.to_string(), run_for(&new, 150));
                end_guest(new);
            }
        });
    }
}

/// Linux 5e25f5db6abb (Xen: steal went from 335 to 312 in a migration), 53f985584e3c (arm64: stolen
/// time restarted at 0), Firecracker PR 5139 (steal must not go back): the memory image may be
/// older than the saved steal, or younger, or empty. Steal goes on from the larger of both.
#[test]
fn restored_steal_goes_on_from_the_larger_of_memory_and_saved_state() {
    needs!(kvm);
    for publisher in PUBLISHERS.into_iter().filter(|publisher| has_publisher(*publisher)) {
        alone(|| {
            let old = start_window(&spinning(publisher, ""));
            thread::sleep(Duration::from_millis(50));
            let saved = save(&old);
            end_guest(old);
            let was = saved_steal(&saved);
            // Steal in the memory image, and what the first update must contain
            for (image, least) in [(0, was[0]), (was[0] - 1_000_000, was[0]), (was[0] + 10_u64.pow(12), 0)] {
                let (new, paused) = fresh(publisher);
                let Ok(Registration::At { gpa }) = Registration::from_msr(saved.vcpus[0].msr) else {
                    panic!("{saved:?}")
                };
                new.vm().record(gpa).expect("in RAM").update(image, 0);
                new.vm().restore_steal_time(&paused, &saved).expect("it fits");
                let now = steal(&new, &paused)[0];
                let expected = image.max(least);
                let range = expected..expected + LATE_NS;
                assert!(range.contains(&now), "{publisher}: {now} ns, {image} in memory, saved {was:?}");
                new.vm().resume(paused);
                assert!(new.wait_for_window(LIMIT), "the window does not open");
                let first = AtRest::of(&new)[0];
                assert!(first.steal_ns >= now, "{publisher}: first update {} < {now}", first.steal_ns);
                end_guest(new);
            }
        });
    }
}

/// Zhang 2026, linux-kselftest (common `last_steal`): the host caches the run delay of the *task*
/// that runs the vCPU, so a vCPU that changes its thread is charged another task's delay. Here a
/// guest's steal goes from thread A to B and back to A, and is the sum of the delays on each.
#[test]
fn steal_of_a_vcpu_that_changes_its_thread_and_returns_is_the_sum_of_its_delays_on_each() {
    needs!(kvm);
    for publisher in PUBLISHERS.into_iter().filter(|publisher| has_publisher(*publisher)) {
        alone(|| {
            let a = start_window(&spinning(publisher, ""));
            assert_own_delay("A", run_for(&a, 150));
            let paused_a = a.vm().pause().expect("nothing else pauses it");
            let on_a = a.vm().save_steal_time(&paused_a).expect("it has not ended");

            let (b, paused) = fresh(publisher);
            b.vm().restore_steal_time(&paused, &on_a).expect("it fits");
            b.vm().resume(paused);
            assert!(b.wait_for_window(LIMIT), "the window does not open");
            assert_own_delay("B", run_for(&b, 150));
            let on_b = save(&b);
            end_guest(b);

            a.vm().restore_steal_time(&paused_a, &on_b).expect("it fits");
            for (now, was) in steal(&a, &paused_a).iter().zip(saved_steal(&on_b)) {
                assert!((was..was + LATE_NS).contains(now), "{publisher}: {now} ns, saved {was} ns");
            }
            a.vm().resume(paused_a);
            assert_own_delay("A again", run_for(&a, 150));
            end_guest(a);
        });
    }
}
