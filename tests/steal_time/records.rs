//! Records anywhere in guest memory, moved under load.

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

use lab::guest::LabGuest;
use protocol::kvm::Registration;
use protocol::payload::conformance::Assertion;
use steal_time::publisher::PublisherKind;
use support::{alone, guest, has_bpf, has_kvm, run};
use vmm::supervise::Outcome;
use vmm::timings::Timings;

/// The scene `roam`, in which one vCPU moves its record so many times.
fn roam(publisher: PublisherKind, vcpus: usize, moves: u32) {
    let (run, result) = run(&guest(vcpus, publisher, &format!("job=conformance scene=roam moves={moves}")));
    assert!(matches!(run.monitor.outcome, Outcome::Reset), "{:?}", result.outcome);
    let held = |assertion| {
        let finding = result.finding(assertion).expect("it was tried");
        assert_eq!(finding.broken_at, None, "{assertion}, {vcpus} vCPUs, {publisher}");
        finding.held
    };
    // Lost writes would break the first, an old record that is written the second.
    assert!(held(Assertion::Isolated) > 0);
    assert!(held(Assertion::MoveLeavesTheOld) >= u64::from(moves));
    assert!(held(Assertion::OffStops) >= u64::from(moves) / 4);
    // Every move was a write that we or KVM took; and each other vCPU came by on its pages meanwhile.
    let exits = result.vcpus[0].exits.msr;
    assert!(publisher == PublisherKind::Kernel || exits >= u64::from(moves), "{exits}");
    let rounds = run.report.expect("ours");
    let rounds = rounds.vcpus[1..vcpus].iter().map(|vcpu| vcpu.own_samples.load(Ordering::Relaxed));
    assert!(rounds.min().expect("others") > 100, "the load was no load");
}

#[test]
fn record_moved_ten_thousand_times_under_load_loses_no_guest_write() {
    if has_bpf() {
        // Twelve pages, and a page element for each vCPU: most moves take one from another page.
        roam(PublisherKind::Bpf, 2, 10_000);
        roam(PublisherKind::Bpf, 4, 10_000);
    }
}

#[test]
fn record_moved_under_kvm_s_own_publisher_loses_no_guest_write() {
    if has_kvm() {
        roam(PublisherKind::Kernel, 4, 10_000);
    }
}

#[test]
fn record_above_4_gib_is_written_like_any_other() {
    const GPA: u64 = 0x1_0000_0fc0;
    if !has_bpf() {
        return;
    }
    alone(|| {
        let words = "job=watch steal=off warmup_ms=5 duration_ms=60000";
        let config = guest(2, PublisherKind::Bpf, words).with(|guest| guest.memory_mib = 4096);
        let config = config.on(support::cpus().first(1));
        let timings = Timings::since(Instant::now());
        let (guest, paused) =
            LabGuest::start_paused(&config, io::sink(), timings).expect("4 GiB, none of it touched");
        let vm = guest.vm();
        let mut saved = vm.save_steal_time(&paused).unwrap();
        saved.vcpus[1].msr = Registration::At { gpa: GPA }.to_msr();
        vm.restore_steal_time(&paused, &saved).unwrap();
        let before = vm.snapshot(&paused)[1].record.expect("it lies in RAM");
        vm.resume(paused);
        thread::sleep(Duration::from_millis(200));
        let paused = vm.pause().unwrap();
        let after = vm.snapshot(&paused)[1].record.expect("it lies in RAM");
        assert_ne!(before[..12], after[..12], "steal and version have moved on");
        assert_eq!(vm.save_steal_time(&paused).unwrap().unlogged_pages, [GPA & !0xfff]);
        vm.resume(paused);
        guest.report().expect("ours").header.close_now.store(1, Ordering::Relaxed);
        guest.wait().expect("it ends");
    });
}
