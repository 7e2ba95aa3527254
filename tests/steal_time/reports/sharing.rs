//! Steal beside other tasks and without them, and what a host may take from a guest meanwhile.
#![expect(unsafe_code, reason = "drops a page of guest memory, as a balloon does")]

use std::thread;
use std::time::{Duration, Instant};

use host::thread::{Class, set_own_class};
use lab::guest::LabGuest;
use protocol::kvm::Registration;
use steal_time::publisher::PublisherKind;
use steal_time::publisher::record::GuestRecord;

use crate::support::{
    AtRest, alone, cpus, end_guest, guest, has_publisher, needs, skip, start_window, wait_until,
};

const SPIN: &str = "job=watch warmup_ms=5 duration_ms=600000";

/// The address of the record of vCPU 0, and the record.
fn first_record(guest: &LabGuest) -> (u64, GuestRecord) {
    let paused = guest.vm().pause().expect("nothing else pauses it");
    let msr = guest.vm().snapshot(&paused)[0].msr.expect("the MSR exists");
    guest.vm().resume(paused);
    match Registration::from_msr(msr) {
        Ok(Registration::At { gpa }) => (gpa, guest.vm().record(gpa).expect("in RAM")),
        other => panic!("{other:?}"),
    }
}

/// Seconds for which a soak runs, unless `VMM_TEST_SOAK_S` says otherwise.
const SOAK_S: u64 = 3;

/// Cover letter of the steal governor, v13: one VM on a Power host with odd steal, without
/// contention. sysstat issue 95: steal 100 % or always 0, some hours after boot. Here a monitoring
/// tool that reads a vCPU's record at intervals finds what the host's scheduler counts as run
/// delay, no more and no less, and never more than the interval.
#[test]
fn steal_of_a_vcpu_without_a_competitor_is_its_run_delay_in_each_interval() {
    needs!(bpf);
    let seconds = std::env::var("VMM_TEST_SOAK_S").ok().and_then(|text| text.parse().ok()).unwrap_or(SOAK_S);
    alone(|| {
        let guest = start_window(&guest(1, PublisherKind::Bpf, SPIN));
        let (mut before, mut began) = (AtRest::of(&guest)[0], Instant::now());
        for _ in 0..4 * seconds {
            thread::sleep(Duration::from_millis(250));
            let (now, length) = (AtRest::of(&guest)[0], began.elapsed());
            let (steal, delay) = (now.steal_ns - before.steal_ns, now.run_delay_ns - before.run_delay_ns);
            eprintln!("steal {:.3} %", steal as f64 / length.as_nanos() as f64 * 100.0);
            // A publication is behind by the last pause's own wake-up at most
            assert!(steal.abs_diff(delay) < 10_000_000, "steal {steal} ns, run delay {delay} ns");
            assert!(u128::from(steal) <= length.as_nanos(), "steal {steal} ns in {length:?}");
            (before, began) = (now, Instant::now());
        }
        end_guest(guest);
    });
}

/// Linux 03cbc732639d: a guest showed 100 % steal instead of 75 % when host CPUs were taken from
/// it. Here the CPUs of two vCPUs are taken one by one and given back: of each vCPU, run time and
/// steal add up to the time that passes.
#[test]
fn run_time_and_steal_add_up_while_host_cpus_are_taken_from_the_guest() {
    needs!(bpf, two_cpus);
    let two = cpus().first(2);
    alone(|| {
        let guest = start_window(&guest(2, PublisherKind::Bpf, SPIN).on(two.clone()));
        for allowed in [2, 1, 2] {
            for (_, thread) in guest.vm().threads() {
                two.first(allowed).pin_thread(thread.tid()).expect("a thread of this process");
            }
            let outer = Instant::now();
            let before = AtRest::of(&guest);
            let inner = Instant::now();
            thread::sleep(Duration::from_millis(300));
            // From pause to pause passes more than the inner time, and less than the outer
            let inner = inner.elapsed().as_nanos() as f64;
            let after = AtRest::of(&guest);
            let outer = outer.elapsed().as_nanos() as f64;
            for (before, after) in before.iter().zip(&after) {
                let ran = (after.stats.run_ns - before.stats.run_ns) as f64;
                let steal = (after.steal_ns - before.steal_ns) as f64;
                let figures = format!(
                    "{allowed} CPUs: ran {ran:.0} ns, steal {steal:.0} ns, in {inner:.0} to {outer:.0} ns"
                );
                assert!(ran + steal > 0.98 * inner && ran + steal < 1.01 * outer, "{figures}");
            }
        }
        end_guest(guest);
    });
}

/// Cloud Hypervisor 8262: watchdogs of guests report hard lockups on a loaded host. A watchdog that
/// takes steal from the time that has passed reports none here: a stall of 200 ms, made by a
/// real-time task on the vCPU's CPU, is steal when the vCPU runs again.
#[test]
fn stall_by_a_real_time_task_is_explained_by_steal_when_the_vcpu_runs_again() {
    const STALL: Duration = Duration::from_millis(200);
    needs!(bpf, two_cpus);
    let cpu = cpus().first(1);
    alone(|| {
        let guest = start_window(&guest(1, PublisherKind::Bpf, SPIN).on(cpu.clone()));
        let (_, record) = first_record(&guest);
        for _ in 0..3 {
            // The vCPU runs: it has just woken after the pause
            thread::sleep(Duration::from_millis(30));
            let before = record.steal_ns();
            let stalled = thread::scope(|scope| {
                let task = scope.spawn(|| {
                    cpu.pin_this_thread().expect("a CPU of this process");
                    set_own_class(Class::Fifo(1)).ok()?;
                    let began = Instant::now();
                    while began.elapsed() < STALL {
                        std::hint::spin_loop();
                    }
                    Some(began.elapsed())
                });
                task.join().expect("the task")
            });
            let Some(stalled) = stalled else {
                return skip("this process may not use SCHED_FIFO");
            };
            wait_until("the vCPU runs again", || record.preempted() == 0 && record.steal_ns() != before);
            let explained = record.steal_ns() - before;
            let lockup = u64::try_from(stalled.as_nanos()).unwrap().saturating_sub(explained);
            assert!(lockup < 20_000_000, "of {stalled:?}, {explained} ns are steal");
        }
        end_guest(guest);
    });
}

/// Linux 7e2175ebd695: the page of a record was mapped wrongly, and written after the guest or the
/// host had given it up. Here the host drops the record's page, as a balloon does, again and again,
/// and neither guest nor publication end. A page of the BPF publishers cannot be dropped, since the
/// kernel does not fault it in again; they name it, for a balloon to leave out.
#[test]
fn dropped_page_of_a_record_ends_neither_guest_nor_publication() {
    const KINDS: [PublisherKind; 4] =
        [PublisherKind::Bpf, PublisherKind::BpfClassic, PublisherKind::Perf, PublisherKind::Monitor];
    needs!(kvm);
    for publisher in KINDS.into_iter().filter(|publisher| has_publisher(*publisher)) {
        alone(|| {
            let guest = start_window(&guest(2, publisher, SPIN).on(cpus().first(1)));
            let (gpa, record) = first_record(&guest);
            let (page_gpa, host_vm) = (gpa & !0xfff, guest.vm().host_vm());
            let page = host_vm.page_hva(page_gpa).expect("in RAM");
            let is_kept = matches!(publisher, PublisherKind::Bpf | PublisherKind::BpfClassic);
            let named = guest.vm().publisher().unlogged_pages();
            assert!(named.is_none_or(|pages| pages.contains(&page_gpa)), "{publisher}");
            for _ in 0..50 {
                if !is_kept {
                    // SAFETY: the page is guest memory, which this process refers to by atomics
                    // only. Its contents become zero.
                    let dropped = unsafe { libc::madvise(page.as_ptr().cast(), 4096, libc::MADV_DONTNEED) };
                    assert_eq!(dropped, 0, "{}", std::io::Error::last_os_error());
                }
                thread::sleep(Duration::from_millis(5));
            }
            let steal = record.steal_ns();
            wait_until("steal is published again", || record.steal_ns() > steal);
            end_guest(guest);
        });
    }
}
