//! A paused guest: snapshots, saved and restored state, resumption.

use std::io;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use lab::guest::{LabConfig, LabGuest};
use protocol::VcpuId;
use steal_time::StealTimeError;
use steal_time::publisher::{PublisherChoice, PublisherKind};
use steal_time::saved::SavedStealTime;
use vmm::VmmError;
use vmm::guest::PayloadSource;
use vmm::supervise::Outcome;
use vmm::timings::Timings;

use crate::support::{
    self, Exclusive, Fixture, alone, cpus, end_guest, guest, has_publisher, needs, start_guest, start_window,
    wait_until,
};

fn timings() -> Timings {
    Timings::since(Instant::now())
}

/// Two vCPUs that spin on one CPU until the test closes their window.
fn spinning(publisher: PublisherKind, params: &str) -> LabConfig {
    let params = format!("job=watch warmup_ms=5 duration_ms=60000 {params}");
    guest(2, publisher, &params).on(cpus().first(1))
}

fn steal_of(record: Option<[u8; 64]>) -> u64 {
    support::steal_ns(record.as_ref())
}

#[test]
fn steal_grows_over_a_hundred_pauses_and_never_shrinks() {
    for publisher in [PublisherKind::Bpf, PublisherKind::Kernel] {
        if !has_publisher(publisher) {
            continue;
        }
        alone(|| {
            let guest = start_window(&spinning(publisher, ""));
            let vm = guest.vm();
            let (mut before, mut halfway) = ([0, 0], [0, 0]);
            for round in 0..100 {
                let paused = vm.pause().expect("it runs");
                assert!(vm.pause().is_err(), "it cannot be paused twice");
                let snapshots = vm.snapshot(&paused);
                let steal = [0, 1].map(|vcpu: usize| steal_of(snapshots[vcpu].record));
                assert!(steal.iter().zip(before).all(|(now, before)| *now >= before), "{before:?} {steal:?}");
                before = steal;
                if round == 50 {
                    halfway = steal;
                }
                vm.resume(paused);
                thread::sleep(Duration::from_millis(4));
            }
            let has_grown = before.iter().zip(halfway).all(|(last, halfway)| *last > halfway);
            assert!(has_grown, "each waits in both halves: {halfway:?} {before:?}");
            end_guest(guest);
        });
    }
}

/// Linux 53f985584e3c (arm64: stolen time restarts at 0 after migration) and Firecracker PR 5139:
/// the guest reads no less than was saved.
#[test]
fn restored_steal_is_raised_above_older_guest_memory_and_survives_json() {
    needs!(bpf);
    alone(|| {
        let guest = start_window(&spinning(PublisherKind::Bpf, ""));
        let paused = guest.vm().pause().unwrap();
        let mut saved = guest.vm().save_steal_time(&paused).unwrap();
        guest.vm().resume(paused);
        end_guest(guest);
        // Both records lie on one page. The program writes it past KVM's dirty log
        assert_eq!(saved.unlogged_pages, Some(vec![saved.vcpus[0].msr & !0xfff]));
        saved.vcpus[1].steal_ns += 1_000_000_000_000;
        let document = serde_json::to_string(&saved).unwrap();
        let saved: SavedStealTime = serde_json::from_str(&document).unwrap();

        let config = spinning(PublisherKind::Bpf, "steal=off");
        let (guest, paused) = LabGuest::start_paused(&config, io::sink(), timings()).unwrap();
        guest.vm().restore_steal_time(&paused, &saved).unwrap();
        for (snapshot, was) in guest.vm().snapshot(&paused).iter().zip(&saved.vcpus) {
            assert_eq!(snapshot.msr, Some(was.msr));
            assert_eq!(snapshot.kernel_msr.map(|msr| msr & 1), Some(0), "KVM writes no record");
            assert!(steal_of(snapshot.record) >= was.steal_ns);
            assert_eq!(snapshot.record.unwrap()[16], 0, "the byte is clear before the first entry");
        }
        guest.vm().resume(paused);
        assert!(guest.wait_for_window(support::LIMIT), "the window does not open");
        for (vcpu, was) in guest.report().unwrap().vcpus.iter().zip(&saved.vcpus) {
            let steal = || vcpu.steal_at_open.load(Ordering::Relaxed);
            wait_until("the window opens for each vCPU", || steal() != 0);
            assert!(steal() >= was.steal_ns, "the guest reads the restored steal");
        }
        end_guest(guest);
    });
}

#[test]
fn state_of_another_guest_or_with_reserved_bits_is_refused_and_changes_nothing() {
    needs!(bpf);
    alone(|| {
        let config = spinning(PublisherKind::Bpf, "steal=off");
        let (guest, paused) = LabGuest::start_paused(&config, io::sink(), timings()).unwrap();
        let vm = guest.vm();
        let good = vm.save_steal_time(&paused).unwrap();
        let refuse = |saved: &SavedStealTime| match vm.restore_steal_time(&paused, saved) {
            Err(VmmError::Publisher(error)) => error,
            other => panic!("{other:?}"),
        };
        let mut one = good.clone();
        one.vcpus.truncate(1);
        assert!(matches!(refuse(&one), StealTimeError::SavedVcpus { saved: 1, here: 2 }));
        let mut reserved = good.clone();
        (reserved.vcpus[0].msr, reserved.vcpus[1].msr) = (0x20_0001, 0x20_0043);
        let one = VcpuId::new(1).unwrap();
        let refused = refuse(&reserved);
        assert!(
            matches!(refused, StealTimeError::SavedReserved { vcpu, msr: 0x20_0043 } if vcpu == one),
            "{refused:?}"
        );
        assert_eq!(vm.save_steal_time(&paused).unwrap(), good);
        vm.resume(paused);
        end_guest(guest);
    });
    alone(|| {
        let config = spinning(PublisherKind::Off, "");
        let (guest, paused) = LabGuest::start_paused(&config, io::sink(), timings()).unwrap();
        let mut saved = guest.vm().save_steal_time(&paused).unwrap();
        saved.vcpus[0].msr = 0x20_0001;
        let refused = guest.vm().restore_steal_time(&paused, &saved);
        assert!(
            matches!(refused, Err(VmmError::Publisher(StealTimeError::SavedUnpublished { .. }))),
            "{refused:?}"
        );
        guest.vm().resume(paused);
        end_guest(guest);
    });
}

/// A guest of one vCPU whose fixture loops.
fn looping(fixture: &Fixture) -> LabConfig {
    let config = guest(1, PublisherKind::Off, "");
    config.with(|guest| {
        guest.payload = PayloadSource::File { path: fixture.path.clone(), flat: false };
        guest.publisher = PublisherChoice::Only(PublisherKind::Off);
        guest.memory_mib = 4;
    })
}

#[test]
fn emulated_instruction_is_complete_when_the_guest_is_paused() {
    needs!(kvm);
    let fixture = Fixture::assembled("in.S");
    alone(|| {
        let guest = start_guest(&looping(&fixture));
        let mut counts = Vec::new();
        for _ in 0..100 {
            thread::sleep(Duration::from_micros(300));
            let paused = guest.vm().pause().unwrap();
            let snapshot = guest.vm().snapshot(&paused).remove(0);
            guest.vm().resume(paused);
            // The guest has counted each read that the monitor answered, or is about to: the `in`
            // is over
            let registers = snapshot.registers.expect("KVM reads them");
            if registers.rip == 0x10_0000 {
                continue; // the guest has not begun
            }
            let is_about_to_count = registers.rip == 0x10_0004;
            assert_eq!(snapshot.exits.port, registers.rbx + u64::from(is_about_to_count), "{registers:x?}");
            counts.push(snapshot.exits.port);
        }
        assert!(counts.first() < counts.last(), "the guest runs between the pauses");
    });
}

/// GPA of the fixture's clock, a `struct pvclock_vcpu_time_info` whose version lies at 0.
const CLOCK_GPA: u64 = 0x20_0000;

/// Firecracker issue 5322, PR 5494, and `BuildBuddy` PR 10482: `KVM_KVMCLOCK_CTRL` after a pause
/// was lost in the snapshot, and the guest's watchdog panicked over a soft lockup. Here a guest
/// finds the flag of the pause (`PVCLOCK_GUEST_STOPPED`), once after each pause, also if its steal
/// time was saved and restored meanwhile.
#[test]
fn clock_of_a_paused_guest_has_the_stopped_flag() {
    const PAUSES: u64 = 50;
    needs!(kvm);
    let fixture = Fixture::assembled("kvmclock.S");
    alone(|| {
        let guest = start_guest(&looping(&fixture));
        let word = |gpa: u64| guest.vm().record(gpa).expect("RAM").steal_ns();
        let found = || word(CLOCK_GPA + 64);
        wait_until("the clock is written", || word(CLOCK_GPA) != 0);
        assert_eq!(found(), 0);
        for pause in 0..PAUSES {
            let paused = guest.vm().pause().unwrap();
            if pause % 2 == 1 {
                let saved = guest.vm().save_steal_time(&paused).unwrap();
                guest.vm().restore_steal_time(&paused, &saved).unwrap();
            }
            guest.vm().resume(paused);
            wait_until("the pause is flagged", || found() > pause);
            assert_eq!(found(), pause + 1);
        }
        thread::sleep(Duration::from_millis(5));
        assert_eq!(found(), PAUSES, "no pause is flagged twice");
    });
}

#[test]
fn paused_guest_can_be_ended_and_ending_guest_can_be_paused() {
    needs!(kvm);
    let _exclusive = Exclusive::take();
    // The guest ends at about the time of the pause, before or after it
    for round in 0..40_u32 {
        let guest = start_guest(&guest(3, PublisherKind::Off, "job=reset"));
        thread::sleep(Duration::from_micros(u64::from(round % 20) * 200));
        let paused = guest.vm().pause().expect("nothing else pauses the guest");
        if round.is_multiple_of(2) {
            guest.vm().resume(paused);
            assert!(matches!(guest.wait().expect("it ends").monitor.outcome, Outcome::Reset));
        } else {
            drop(guest);
        }
    }
    // The time limit passes while the guest is paused
    let config = guest(2, PublisherKind::Off, "job=idle")
        .with(|guest| guest.timeout = Some(Duration::from_millis(50)));
    let (guest, _paused) = LabGuest::start_paused(&config, io::sink(), timings()).unwrap();
    assert!(matches!(guest.wait().expect("it ends").monitor.outcome, Outcome::TimedOut));
}
