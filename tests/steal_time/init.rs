//! INIT that no vCPU sends: the I/O APIC does, from a thread of the kernel.

use std::thread;
use std::time::Duration;

use lab::guest::LabConfig;
use protocol::payload::conformance::Assertion;
use protocol::payload::params::Scene;
use steal_time::publisher::PublisherKind;
use vmm::supervise::Outcome;

use crate::support::{
    alone, cpus, end_guest, end_of, guest, has_publisher, needs, run, start_window, vmm_run, wait_until,
};

const BY_PIN: [Scene; 2] = [Scene::InitByPit, Scene::InitByCom1];

fn playing(publisher: PublisherKind, scene: Scene) -> LabConfig {
    let config = guest(2, publisher, &format!("job=conformance scene={scene}"));
    config.with(|guest| guest.start = scene.start())
}

/// The guest judges that nothing writes the old record, and that the MSR reads 0.
#[test]
fn init_through_the_io_apic_ends_publication_with_both_bpf_publishers() {
    for publisher in [PublisherKind::Bpf, PublisherKind::BpfClassic] {
        if !has_publisher(publisher) {
            continue;
        }
        for scene in BY_PIN {
            let (run, result) = run(&playing(publisher, scene));
            assert!(matches!(run.monitor.outcome, Outcome::Reset), "{scene}: {:?}", run.monitor.outcome);
            let finding = result.finding(Assertion::InitClears).expect("the scene judges it");
            assert_eq!(finding.broken_at, None, "{publisher}, {scene}");
            assert!(finding.held > 0);
        }
    }
}

/// The other guest resets its vCPU 1 ten times, through its I/O APIC and by its vCPU 0.
#[test]
fn init_in_another_guest_leaves_the_record_of_the_same_apic_id_published() {
    needs!(bpf);
    alone(|| {
        let config = guest(2, PublisherKind::Bpf, "job=watch warmup_ms=5 duration_ms=60000");
        let guest = start_window(&config.on(cpus().first(1)));
        let snapshot = || {
            let paused = guest.vm().pause().expect("it runs");
            let snapshot = guest.vm().snapshot(&paused).swap_remove(1);
            guest.vm().resume(paused);
            (snapshot.msr, snapshot.record.expect("the vCPU has a record"))
        };
        let (msr, _) = snapshot();
        assert!(msr.is_some_and(|msr| msr & 1 != 0), "{msr:x?}");
        for _ in 0..5 {
            for scene in BY_PIN {
                let args = ["--vcpus", "2", "--publisher", "bpf", "--start", "sipi", "--job", "conformance"];
                let ended = end_of(&mut vmm_run(args.into_iter().chain(["--scene", scene.name()])));
                assert_eq!(ended.status, Some(0), "{ended:?}");
            }
        }
        thread::sleep(Duration::from_millis(20));
        let (after, before) = snapshot();
        assert_eq!(after, msr, "the MSR is not cleared");
        wait_until("the record is written again", || snapshot().1 != before);
        end_guest(guest);
    });
}
