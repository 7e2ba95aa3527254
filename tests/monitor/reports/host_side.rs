//! Kicks, pauses of many guests, the MSR filter, and what the host must not have to endure.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};
use std::{fs, io};

use host::scheduler;
use lab::guest::LabGuest;
use protocol::kvm::MSR_STEAL_TIME;
use steal_time::publisher::{PublisherChoice, PublisherKind};
use vmm::guest::PayloadSource;
use vmm::supervise::Outcome;
use vmm::timings::Timings;

use crate::support::{
    Fixture, LIMIT, alone, cpus, end_guest, guest, needs, skip, start_guest, start_window, wait_until,
};

const SPIN: &str = "job=watch warmup_ms=5 duration_ms=600000";

/// Kicks at random moments, unless `VMM_TEST_KICKS` says otherwise.
const KICKS: u64 = 100_000;

/// Cloud Hypervisor 7427, PR 7459: a kick between the check of the flag and `KVM_RUN` was lost, and
/// a pause hung. Here a guest that never exits by itself is stopped a hundred thousand times, after
/// random delays: one lost kick would stop the test.
#[test]
fn kicks_after_random_delays_each_stop_a_guest_that_never_exits() {
    needs!(kvm);
    let kicks = std::env::var("VMM_TEST_KICKS").ok().and_then(|text| text.parse().ok()).unwrap_or(KICKS);
    alone(|| {
        let guest = start_window(&guest(1, PublisherKind::Off, SPIN));
        let host_vm = guest.vm().host_vm();
        let (sender, results) = mpsc::channel();
        let kicker = thread::spawn(move || {
            let (mut stopped, mut random) = (0, fastrand::Rng::with_seed(27));
            for round in 1..=kicks {
                for _ in 0..random.u32(0..2000) {
                    std::hint::spin_loop();
                }
                host_vm.stop_all(&mut |_| stopped += 1);
                if round % 1000 == 0 {
                    sender.send(stopped).expect("the test waits");
                }
            }
        });
        for round in 1..=kicks / 1000 {
            let stopped = results.recv_timeout(LIMIT).expect("each kick stops the guest");
            assert_eq!(stopped, round * 1000);
        }
        kicker.join().expect("all kicks are sent");
        end_guest(guest);
    });
}

/// rust-vmm/kvm issue 373: `immediate_exit` is written through a second mapping of `kvm_run`, which
/// aliases the first. Here a kick needs no second mapping: each vCPU has one.
#[test]
fn kvm_run_of_each_vcpu_is_mapped_once() {
    const VCPUS: usize = 3;
    needs!(kvm);
    alone(|| {
        let guest = start_window(&guest(VCPUS, PublisherKind::Monitor, SPIN));
        let maps = fs::read_to_string("/proc/self/maps").expect("/proc is mounted");
        for vcpu in 0..VCPUS {
            let name = format!("anon_inode:kvm-vcpu:{vcpu}");
            let count = maps.lines().filter(|line| line.ends_with(&name)).count();
            assert_eq!(count, 1, "{name} in {maps}");
        }
        end_guest(guest);
    });
}

/// Firecracker issue 1555: of a hundred microVMs resumed at once some failed with "vCPUs resume
/// failed", since each had to answer within 100 ms. Here 64 guests that all spin on the CPUs of
/// this host pause and resume at once, and none fails, however long it takes.
#[test]
fn guests_that_pause_and_resume_at_once_under_heavy_load_all_succeed() {
    const GUESTS: usize = 64;
    needs!(kvm);
    alone(|| {
        let config = guest(1, PublisherKind::Monitor, SPIN);
        let start = || LabGuest::start_paused(&config, io::sink(), Timings::since(Instant::now()));
        let guests: Vec<_> = (0..GUESTS).map(|_| start().expect("the guest starts")).collect();
        thread::scope(|scope| {
            for (guest, paused) in guests {
                scope.spawn(move || {
                    let mut paused = paused;
                    for _ in 0..3 {
                        guest.vm().resume(paused);
                        thread::sleep(Duration::from_millis(50));
                        paused = guest.vm().pause().expect("nothing else pauses it");
                        assert_eq!(guest.vm().snapshot(&paused).len(), 1);
                    }
                    guest.vm().resume(paused);
                    guest.close();
                    let run = guest.wait().expect("the guest ends");
                    assert!(matches!(run.monitor.outcome, Outcome::Reset), "{:?}", run.monitor.outcome);
                });
            }
        });
    });
}

/// Where the fixture stores its results (GPA).
const TABLE: u64 = 0x20_0000;

/// The results of one run of the fixture: what it read, whether it may write the steal-time MSR,
/// the accesses that reached the monitor, and KVM's own copy.
struct Probed {
    /// 1: read; 2: #GP. 256 of KVM's, then TSC and APIC base, then 256 of hypervisors.
    table: Vec<u8>,
    write: u8,
    exits: u64,
    kernel_msr: Option<u64>,
}

fn probe(fixture: &Fixture, publisher: PublisherKind) -> Probed {
    let config = guest(1, publisher, "").with(|guest| {
        guest.payload = PayloadSource::File { path: fixture.path.clone(), flat: false };
        guest.publisher = PublisherChoice::Only(publisher);
        guest.memory_mib = 4;
    });
    let guest = start_guest(&config);
    let row = |offset: u64| guest.vm().record(TABLE + offset).expect("RAM").bytes();
    wait_until("all are probed", || row(0x300)[8] == 1);
    let paused = guest.vm().pause().expect("nothing else pauses it");
    let snapshot = guest.vm().snapshot(&paused).remove(0);
    let table = (0..0x300).step_by(64).flat_map(row).collect();
    Probed { table, write: row(0x300)[0], exits: snapshot.exits.msr, kernel_msr: snapshot.kernel_msr }
}

/// Hyperlight PR 991, Solo5 issue 611, Cloud Hypervisor PR 8442: are KVM's own MSRs really denied
/// to a guest? Here the filter denies KVM exactly the one that this monitor emulates: each access
/// reaches the monitor, or faults, and KVM's copy stays disabled. Which of the others a guest can
/// read is KVM's affair, and printed.
#[test]
fn steal_time_msr_is_denied_to_kvm_and_what_else_a_guest_reads_is_printed() {
    needs!(kvm);
    let fixture = Fixture::assembled("msr.S");
    alone(|| {
        let steal_time = usize::try_from(MSR_STEAL_TIME & 0xff).expect("a byte");
        let on = probe(&fixture, PublisherKind::Monitor);
        assert!(on.table[..0x100].iter().all(|byte| matches!(byte, 1 | 2)), "{:?}", on.table);
        assert_eq!((on.table[steal_time], on.write), (1, 1), "the MSR reads and writes");
        // One read, one write, and nothing else: other MSRs are not filtered
        assert_eq!(on.exits, 2);
        let is_disabled = |msr: Option<u64>| msr.is_some_and(|msr| msr & 1 == 0);
        assert!(is_disabled(on.kernel_msr), "{:?}", on.kernel_msr);

        let off = probe(&fixture, PublisherKind::Off);
        assert_eq!((off.table[steal_time], off.write), (2, 2), "without a publisher it faults");
        assert_eq!(off.exits, 2);
        assert!(is_disabled(off.kernel_msr), "{:?}", off.kernel_msr);
        for (index, (with, without)) in on.table.iter().zip(&off.table).enumerate() {
            assert!(index == steal_time || with == without, "the publisher changes MSR {index:#x}");
        }
        let ranges = [(0x4b56_4d00, 0, 0x100), (0x11, 0x100, 2), (0x4000_0000, 0x200, 0x100)];
        for (base, offset, count) in ranges {
            let read: Vec<_> = (0..count).filter(|index| on.table[offset + index] == 1).collect();
            let names: Vec<_> = read.iter().map(|index| format!("{:#x}", base + index)).collect();
            eprintln!("MSRs from {base:#x} that a guest can read: {names:?}");
        }
    });
}

/// sched-ext/scx issue 3715: core-scheduling cookies, set by default, and a `sched_ext` scheduler
/// hung the host. Here no vCPU thread has a cookie that its process had not.
#[test]
fn vcpu_threads_have_no_core_scheduling_cookie_of_their_own() {
    needs!(kvm);
    let own = match scheduler::core_cookie(0) {
        Ok(cookie) => cookie,
        Err(error) => return skip(&format!("the kernel tells no core-scheduling cookie: {error}")),
    };
    alone(|| {
        let guest = start_window(&guest(2, PublisherKind::Monitor, SPIN).on(cpus()));
        for (vcpu, thread) in guest.vm().threads() {
            assert_eq!(scheduler::core_cookie(thread.tid()).expect("it lives"), own, "vCPU {vcpu}");
        }
        end_guest(guest);
    });
}
