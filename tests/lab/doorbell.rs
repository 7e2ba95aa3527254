//! The doorbell: a guest gets a real-time class by the user's option only, and gives it back.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use host::thread::{Attributes, Class, set_own_class};
use lab::guest::{LabConfig, LabGuest};
use protocol::VcpuId;
use steal_time::publisher::PublisherKind;
use vmm::guest::PayloadSource;
use vmm::supervise::Outcome;

use crate::support::elf::{Segment, executable};
use crate::support::{Fixture, alone, cpus, end_guest, guest, needs, start_guest, start_window, wait_until};

/// vCPUs that contend on one CPU.
const VCPUS: usize = 4;

/// Runs `test` on a thread with the attributes that a user may give the monitor; returns its result.
/// vCPU threads inherit them.
fn with_attributes<R: Send>(test: impl FnOnce(Attributes) -> R + Send) -> R {
    let niced = || {
        set_own_class(Class::Tuned { nice: 19, slice_ns: 7_000_000 }).unwrap();
        test(Attributes::of(0).unwrap())
    };
    thread::scope(|scope| scope.spawn(niced).join().unwrap())
}

fn attributes(guest: &LabGuest, vcpu: VcpuId) -> Option<Attributes> {
    Attributes::of(guest.vm().control().tid(vcpu)?).ok()
}

fn contend(options: &str, cmdline: &str) -> LabConfig {
    let options = format!("{options} duration_ms=60000");
    let config = guest(VCPUS, PublisherKind::Bpf, &options).on(cpus().first(1));
    config.with(|guest| guest.cmdline = format!("job=contend lock=tas {cmdline}"))
}

/// Acquisitions of the lock so far, as the payload counts them.
fn acquired(guest: &LabGuest) -> u64 {
    let vcpus = &guest.report().unwrap().vcpus;
    vcpus.iter().map(|vcpu| vcpu.acquisitions_ever.load(Ordering::Relaxed)).sum()
}

#[test]
fn doorbell_of_a_guest_without_the_option_is_an_unclaimed_port() {
    needs!(kvm);
    // mov $0, %al; 1: out %al, $0xf9; jmp 1b
    let code = executable(0x10_0000, &[Segment::of(0x10_0000, &[0xb0, 0, 0xe6, 0xf9, 0xeb, 0xfc])]);
    let file = Fixture::file("ring.elf", &code);
    alone(|| {
        with_attributes(|own| {
            let config = guest(1, PublisherKind::Off, "").with(|guest| {
                guest.payload = PayloadSource::File { path: file.path.clone(), flat: false };
                guest.timeout = Some(Duration::from_secs(2));
            });
            let guest = start_guest(&config);
            wait_until("the vCPU thread attaches", || attributes(&guest, VcpuId::BOOT).is_some());
            for _ in 0..200 {
                assert_eq!(attributes(&guest, VcpuId::BOOT), Some(own));
                thread::sleep(Duration::from_millis(1));
            }
            let run = guest.wait().unwrap();
            assert!(matches!(run.monitor.outcome, Outcome::TimedOut), "{:?}", run.monitor.outcome);
            assert!(run.monitor.unclaimed.writes > 100, "{:?}", run.monitor.unclaimed);
            assert_eq!(run.vcpus[0].directed_yields, 0);
        });
    });
}

/// A command line may come with a guest's image.
#[test]
fn doorbell_by_the_command_line_alone_is_an_unclaimed_port() {
    needs!(bpf);
    alone(|| {
        let guest = start_window(&contend("", "wait=yield"));
        wait_until("the lock is taken often", || acquired(&guest) > 300_000);
        let run = end_guest(guest);
        let report = run.report.as_ref().unwrap();
        let rings: u64 = report.vcpus.iter().map(|vcpu| vcpu.yields.load(Ordering::Relaxed)).sum();
        assert!(rings > 0, "the waiters ring");
        assert!(run.monitor.unclaimed.writes >= rings, "{rings}: {:?}", run.monitor.unclaimed);
        assert_eq!(run.vcpus.iter().map(|vcpu| vcpu.directed_yields).sum::<u64>(), 0);
    });
}

#[test]
fn storm_of_doorbells_leaves_the_attributes_of_all_vcpu_threads_as_they_were() {
    needs!(bpf);
    alone(|| {
        with_attributes(|own| {
            let guest = start_window(&contend("wait=yield", ""));
            wait_until("the lock is taken often", || acquired(&guest) > 300_000);
            // Paused, no thread is in the middle of a yield
            let paused = guest.vm().pause().unwrap();
            for vcpu in VcpuId::first(VCPUS) {
                assert_eq!(attributes(&guest, vcpu), Some(own), "vCPU {vcpu}");
            }
            guest.vm().resume(paused);
            let run = end_guest(guest);
            let yields: u64 = run.vcpus.iter().map(|vcpu| vcpu.directed_yields).sum();
            let is_allowed = set_own_class(Class::Fifo(1)).is_ok();
            assert_eq!(yields > 0, is_allowed, "{yields} directed yields");
        });
    });
}
