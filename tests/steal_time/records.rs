//! Records anywhere in guest memory, moved under load.

use std::io;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use lab::guest::LabGuest;
use protocol::kvm::Registration;
use protocol::payload::conformance::Assertion;
use steal_time::publisher::PublisherKind;
use vmm::supervise::Outcome;
use vmm::timings::Timings;

use crate::support::{alone, cpus, end_guest, guest, needs, run};

/// Plays the scene `roam`, in which one vCPU moves its record `moves` times.
fn roam(publisher: PublisherKind, vcpus: usize, moves: u32) {
    let (run, result) = run(&guest(vcpus, publisher, &format!("job=conformance scene=roam moves={moves}")));
    assert!(matches!(run.monitor.outcome, Outcome::Reset), "{:?}", result.outcome);
    let held = |assertion| {
        let finding = result.finding(assertion).expect("the scene tries it");
        assert_eq!(finding.broken_at, None, "{assertion}, {vcpus} vCPUs, {publisher}");
        finding.held
    };
    // A lost write breaks the first; a write to an old record breaks the second
    assert!(held(Assertion::Isolated) > 0);
    assert!(held(Assertion::MoveLeavesTheOld) >= u64::from(moves));
    assert!(held(Assertion::OffStops) >= u64::from(moves) / 4);
    // Each move is a write of the MSR, and each other vCPU writes to the pages meanwhile
    let exits = result.vcpus[0].exits.msr;
    assert!(publisher == PublisherKind::Kernel || exits >= u64::from(moves), "{exits}");
    let rounds = run.report.expect("ours");
    let rounds = rounds.vcpus[1..vcpus].iter().map(|vcpu| vcpu.own_samples.load(Ordering::Relaxed));
    assert!(rounds.min().expect("others") > 100, "the other vCPUs made no load");
}

#[test]
fn record_moved_ten_thousand_times_under_load_loses_no_guest_write() {
    needs!(bpf);
    // Twelve pages, and one overlay page for each vCPU: most moves take one from another page
    roam(PublisherKind::Bpf, 2, 10_000);
    roam(PublisherKind::Bpf, 4, 10_000);
}

#[test]
fn record_moved_under_the_in_kernel_publisher_loses_no_guest_write() {
    needs!(kvm);
    roam(PublisherKind::Kernel, 4, 10_000);
}

#[test]
fn record_above_4_gib_is_written_like_any_other() {
    const GPA: u64 = 0x1_0000_0fc0;
    needs!(bpf);
    alone(|| {
        let params = "job=watch steal=off warmup_ms=5 duration_ms=60000";
        let config = guest(2, PublisherKind::Bpf, params).with(|guest| guest.memory_mib = 4096);
        let config = config.on(cpus().first(1));
        let timings = Timings::since(Instant::now());
        let (guest, paused) =
            LabGuest::start_paused(&config, io::sink(), timings).expect("4 GiB, of which little is touched");
        let vm = guest.vm();
        let mut saved = vm.save_steal_time(&paused).unwrap();
        saved.vcpus[1].msr = Registration::At { gpa: GPA }.to_msr();
        vm.restore_steal_time(&paused, &saved).unwrap();
        let before = vm.snapshot(&paused)[1].record.expect("it lies in RAM");
        vm.resume(paused);
        thread::sleep(Duration::from_millis(200));
        let paused = vm.pause().unwrap();
        let after = vm.snapshot(&paused)[1].record.expect("it lies in RAM");
        assert_ne!(before[..12], after[..12], "steal and version grow");
        assert_eq!(vm.save_steal_time(&paused).unwrap().unlogged_pages, Some(vec![GPA & !0xfff]));
        vm.resume(paused);
        end_guest(guest);
    });
}
