//! The `preempted` byte, end to end: context switch, BPF program, overlaid page, check in the
//! guest.

use lab::guest::LabConfig;
use lab::results::{PreemptedFigures, RunResult};
use steal_time::publisher::PublisherKind;
use vmm::supervise::Outcome;

use crate::support::{
    alone, assert_counts_preemptions, assert_steal_is_run_delay, guest, judge_undisturbed, needs, run,
    watch_on_one_cpu,
};

/// Two vCPUs that spin and sample, on `cpus` CPUs.
fn watching(publisher: PublisherKind, cpus: usize) -> LabConfig {
    let mut config = guest(2, publisher, "job=watch duration_ms=500");
    config.guest.cpus = config.guest.cpus.first(cpus);
    config
}

fn watch(config: &LabConfig) -> (RunResult, PreemptedFigures) {
    let (run, result) = run(config);
    assert!(matches!(run.monitor.outcome, Outcome::Reset), "{:?}", result.outcome);
    let byte = result.window.as_ref().and_then(|window| window.preempted).expect("the guest samples");
    (result, byte)
}

#[test]
fn byte_of_preempted_vcpu_is_seen_by_spinner_that_took_its_cpu() {
    needs!(bpf);
    judge_undisturbed(|| {
        let (result, byte) = watch(&watching(PublisherKind::Bpf, 1));
        assert!(byte.other_samples > 1_000_000, "{byte:?}");
        assert!(byte.other_share() >= 0.99, "{byte:?} {:?}", result.window);
        assert_eq!(byte.own_set, 0, "{byte:?} {:?}", result.vcpus);
    });
}

#[test]
fn byte_of_running_vcpu_is_set_no_longer_than_the_host_takes_its_cpu() {
    needs!(bpf, two_cpus);
    judge_undisturbed(|| {
        let (result, byte) = watch(&watching(PublisherKind::Bpf, 2));
        assert_eq!(byte.own_set, 0, "{byte:?} {:?}", result.vcpus);
        // On two idle CPUs no time is taken. If other tasks take some, the byte is rightly set: the
        // scheduler's own count is the measure
        let window = result.window.expect("a window");
        let taken = window.host.run_delay_ns.unwrap() as f64 / (2.0 * window.length_ns as f64);
        assert!(byte.other_share() <= 0.01 + 2.0 * taken, "{byte:?}, taken {taken}");
    });
}

#[test]
fn program_counts_every_preemption_that_the_scheduler_counts() {
    needs!(bpf);
    alone(|| {
        let (before, after, _) = watch_on_one_cpu(PublisherKind::Bpf);
        assert_counts_preemptions(&before, &after);
    });
}

#[test]
fn steal_in_the_record_is_the_run_delay_of_the_thread() {
    needs!(bpf);
    alone(|| {
        let (before, after, window) = watch_on_one_cpu(PublisherKind::Bpf);
        assert_steal_is_run_delay(&before, &after, window);
    });
}

#[test]
fn steal_that_the_guest_reads_is_the_run_delay_in_the_window_of_the_host() {
    needs!(bpf);
    judge_undisturbed(|| {
        let (result, _) = watch(&watching(PublisherKind::Bpf, 1));
        let window = result.window.expect("a window");
        assert!(window.host.preemptions.unwrap() > 20, "{:?}", window.host);
        // Two vCPUs share one CPU: each waits half of the time. The windows of guest and host
        // differ at both ends by the time that a vCPU or the main thread waits for the CPU
        let (guest, host) = (window.guest_steal_ns as f64, window.host.run_delay_ns.unwrap() as f64);
        assert!(guest > 0.4 * window.length_ns as f64, "{window:?}");
        assert!((guest - host).abs() < 30e6, "guest {guest}, host {host}");
    });
}

#[test]
fn in_kernel_publisher_accounts_steal() {
    needs!(kvm);
    judge_undisturbed(|| {
        let (result, byte) = watch(&watching(PublisherKind::Kernel, 1));
        let window = result.window.expect("a window");
        assert_eq!(byte.own_set, 0);
        assert!(window.guest_steal_ns as f64 > 0.4 * window.length_ns as f64, "{window:?}");
        // Its `preempted` byte depends on the host: `vmm-lab bench preempted` prints it
    });
}
