//! A machine that stands still: paused, looked at, saved, restored, and gone on with.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on says so and fails"
)]

#[path = "../support/lab.rs"]
mod support;

use std::io;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use lab::guest::{LabConfig, LabGuest};
use protocol::VcpuId;
use steal_time::publisher::{PublisherChoice, PublisherKind};
use steal_time::saved::{SavedError, SavedStealTime};
use support::{Fixture, LIMIT, alone, cpus, guest, has_bpf, has_kvm};
use vmm::guest::PayloadSource;
use vmm::supervise::Outcome;
use vmm::timings::Timings;
use vmm::vm::StateError;

fn timings() -> Timings {
    Timings::since(Instant::now())
}

/// Two vCPUs that spin on one CPU until they are asked to stop.
fn spinning(publisher: PublisherKind, words: &str) -> LabConfig {
    let words = format!("job=watch warmup_ms=5 duration_ms=60000 {words}");
    let config = guest(2, publisher, &words);
    config.on(cpus().first(1))
}

fn start(config: &LabConfig) -> LabGuest {
    LabGuest::start(config, io::sink(), timings()).expect("the guest starts")
}

fn wait_until(what: &str, is: &dyn Fn() -> bool) {
    let began = Instant::now();
    while !is() {
        assert!(began.elapsed() < LIMIT, "it never came that {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

fn wait_for_window(guest: &LabGuest) {
    assert!(guest.wait_for_window(LIMIT), "its window opens");
}

/// Asks our payload to stop, and waits until it has.
fn end(guest: LabGuest) {
    guest.report().expect("ours").header.close_now.store(1, Ordering::Relaxed);
    let run = guest.wait().expect("it ends");
    assert!(matches!(run.monitor.outcome, Outcome::Reset), "{:?}", run.monitor.outcome);
}

fn steal_of(record: Option<[u8; 64]>) -> u64 {
    let record = record.expect("it is registered");
    u64::from_le_bytes(*record.first_chunk().expect("64 bytes"))
}

#[test]
fn steal_goes_on_over_a_hundred_pauses_and_never_back() {
    for publisher in [PublisherKind::Bpf, PublisherKind::Kernel] {
        if !(if publisher == PublisherKind::Bpf { has_bpf() } else { has_kvm() }) {
            continue;
        }
        alone(|| {
            let guest = start(&spinning(publisher, ""));
            wait_for_window(&guest);
            let vm = guest.vm();
            let (mut before, mut halfway) = ([0, 0], [0, 0]);
            for round in 0..100 {
                let paused = vm.pause().expect("it runs");
                assert!(vm.pause().is_err(), "it cannot be paused twice");
                let looks = vm.snapshot(&paused);
                let steal = [0, 1].map(|vcpu: usize| steal_of(looks[vcpu].record));
                assert!(steal.iter().zip(before).all(|(now, before)| *now >= before), "{before:?} {steal:?}");
                before = steal;
                if round == 50 {
                    halfway = steal;
                }
                vm.resume(paused);
                thread::sleep(Duration::from_millis(4));
            }
            let has_grown = before.iter().zip(halfway).all(|(last, halfway)| *last > halfway);
            assert!(has_grown, "each has waited, before and after: {halfway:?} {before:?}");
            end(guest);
        });
    }
}

#[test]
fn restored_steal_is_raised_where_guest_memory_is_older_and_survives_a_document() {
    if !has_bpf() {
        return;
    }
    alone(|| {
        let guest = start(&spinning(PublisherKind::Bpf, ""));
        wait_for_window(&guest);
        let paused = guest.vm().pause().unwrap();
        let mut saved = guest.vm().save_steal_time(&paused).unwrap();
        guest.vm().resume(paused);
        end(guest);
        // Both records lie on one page, which the program writes, and KVM's dirty log knows nothing of it.
        assert_eq!(saved.unlogged_pages, [saved.vcpus[0].msr & !0xfff]);
        saved.vcpus[1].steal_ns += 1_000_000_000_000;
        let document = serde_json::to_string(&saved).unwrap();
        let saved: SavedStealTime = serde_json::from_str(&document).unwrap();

        let config = spinning(PublisherKind::Bpf, "steal=off");
        let (guest, paused) = LabGuest::start_paused(&config, io::sink(), timings()).unwrap();
        guest.vm().restore_steal_time(&paused, &saved).unwrap();
        for (look, was) in guest.vm().snapshot(&paused).iter().zip(&saved.vcpus) {
            assert_eq!((look.msr, look.kernel_msr), (Some(was.msr), Some(0)));
            assert!(steal_of(look.record) >= was.steal_ns);
            assert_eq!(look.record.unwrap()[16], 0, "the byte before the first entry");
        }
        guest.vm().resume(paused);
        wait_for_window(&guest);
        for (vcpu, was) in guest.report().unwrap().vcpus.iter().zip(&saved.vcpus) {
            let steal = || vcpu.steal_at_open.load(Ordering::Relaxed);
            wait_until("the window opens for each", &|| steal() != 0);
            assert!(steal() >= was.steal_ns, "the guest itself reads it");
        }
        end(guest);
    });
}

#[test]
fn state_of_another_guest_or_that_no_guest_wrote_is_refused_and_nothing_changes() {
    if !has_bpf() {
        return;
    }
    alone(|| {
        let config = spinning(PublisherKind::Bpf, "steal=off");
        let (guest, paused) = LabGuest::start_paused(&config, io::sink(), timings()).unwrap();
        let vm = guest.vm();
        let good = vm.save_steal_time(&paused).unwrap();
        let refuse = |saved: &SavedStealTime| match vm.restore_steal_time(&paused, saved) {
            Err(StateError::Saved(error)) => error,
            other => panic!("{other:?}"),
        };
        let mut one = good.clone();
        one.vcpus.truncate(1);
        assert_eq!(refuse(&one), SavedError::Vcpus { saved: 1, here: 2 });
        let mut reserved = good.clone();
        (reserved.vcpus[0].msr, reserved.vcpus[1].msr) = (0x20_0001, 0x20_0043);
        let vcpu = VcpuId::new(1).unwrap();
        assert_eq!(refuse(&reserved), SavedError::Reserved { vcpu, msr: 0x20_0043 });
        assert_eq!(vm.save_steal_time(&paused).unwrap(), good);
        vm.resume(paused);
        end(guest);
    });
    alone(|| {
        let config = spinning(PublisherKind::Off, "");
        let (guest, paused) = LabGuest::start_paused(&config, io::sink(), timings()).unwrap();
        let mut saved = guest.vm().save_steal_time(&paused).unwrap();
        saved.vcpus[0].msr = 0x20_0001;
        let refused = guest.vm().restore_steal_time(&paused, &saved);
        assert!(matches!(refused, Err(StateError::Saved(SavedError::NobodyPublishes { .. }))), "{refused:?}");
        guest.vm().resume(paused);
        end(guest);
    });
}

/// A guest of one vCPU whose fixture stays in a loop.
fn looping(fixture: &Fixture) -> LabConfig {
    let config = guest(1, PublisherKind::Off, "");
    config.with(|guest| {
        guest.payload = PayloadSource::File { path: fixture.path.clone(), flat: false };
        guest.publisher = PublisherChoice::Only(PublisherKind::Off);
        guest.memory_mib = 4;
    })
}

#[test]
fn instruction_that_the_monitor_has_a_part_in_is_complete_at_a_standstill() {
    if !has_kvm() {
        return;
    }
    let fixture = Fixture::assembled("in.S");
    alone(|| {
        let guest = start(&looping(&fixture));
        let mut counts = Vec::new();
        for _ in 0..100 {
            thread::sleep(Duration::from_micros(300));
            let paused = guest.vm().pause().unwrap();
            let look = guest.vm().snapshot(&paused).remove(0);
            guest.vm().resume(paused);
            // Each read that the monitor has answered is either counted or about to be: the `in` is over.
            let registers = look.registers.expect("KVM tells");
            if registers.rip == 0x10_0000 {
                continue; // it has not begun
            }
            let is_about_to_count = registers.rip == 0x10_0004;
            assert_eq!(look.exits.port, registers.rbx + u64::from(is_about_to_count), "{registers:x?}");
            counts.push(look.exits.port);
        }
        assert!(counts.first() < counts.last(), "the guest went on meanwhile");
    });
}

/// Where the fixture has its clock, and the flag in it that says that the guest was paused (`PVCLOCK_GUEST_STOPPED`).
const CLOCK: u64 = 0x20_0000;
const GUEST_STOPPED: u8 = 2;

#[test]
fn guest_finds_noted_in_its_clock_that_it_was_paused() {
    if !has_kvm() {
        return;
    }
    let fixture = Fixture::assembled("kvmclock.S");
    alone(|| {
        let guest = start(&looping(&fixture));
        let byte = |offset: usize| {
            let record = guest.vm().record(CLOCK).expect("RAM");
            record.bytes()[offset]
        };
        // Bytes of `struct pvclock_vcpu_time_info`: version at 0, flags at 29.
        wait_until("the clock is written", &|| byte(0) != 0);
        assert_eq!(byte(29) & GUEST_STOPPED, 0);
        let paused = guest.vm().pause().unwrap();
        guest.vm().resume(paused);
        wait_until("the pause is noted", &|| byte(29) & GUEST_STOPPED != 0);
    });
}

#[test]
fn machine_that_stands_still_can_be_ended_and_one_that_ends_can_be_stopped() {
    if !has_kvm() {
        return;
    }
    // The end of the guest and the pause come at about the same time, in either order.
    for round in 0..40_u32 {
        let guest = start(&guest(3, PublisherKind::Off, "job=reset"));
        thread::sleep(Duration::from_micros(u64::from(round % 20) * 200));
        let paused = guest.vm().pause().expect("nobody else pauses it");
        if round.is_multiple_of(2) {
            guest.vm().resume(paused);
            assert!(matches!(guest.wait().expect("it ends").monitor.outcome, Outcome::Reset));
        } else {
            drop(guest);
        }
    }
    // The time is over while it stands still.
    let config = guest(2, PublisherKind::Off, "job=idle")
        .with(|guest| guest.timeout = Some(Duration::from_millis(50)));
    let (guest, _paused) = LabGuest::start_paused(&config, io::sink(), timings()).unwrap();
    assert!(matches!(guest.wait().expect("it ends").monitor.outcome, Outcome::TimedOut));
}
