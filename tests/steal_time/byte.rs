//! The byte, end to end: host scheduler, program, overlaid page, check, guest.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on says so and fails"
)]

#[path = "../support/lab.rs"]
mod support;

use lab::guest::LabConfig;
use lab::results::{ByteFigures, RunResult};
use steal_time::publisher::PublisherKind;
use support::{guest, has_bpf, has_kvm, has_two_cpus, run};
use vmm::supervise::Outcome;

/// Two vCPUs that spin and sample, on `cpus` CPUs.
fn watching(publisher: PublisherKind, cpus: usize) -> LabConfig {
    let mut config = guest(2, publisher, "job=watch duration_ms=500");
    config.guest.cpus = config.guest.cpus.first(cpus);
    config
}

fn watch(config: &LabConfig) -> (RunResult, ByteFigures) {
    let (run, result) = run(config);
    assert!(matches!(run.monitor.outcome, Outcome::Reset), "{:?}", result.outcome);
    let byte = result.window.as_ref().and_then(|window| window.byte).expect("the guest sampled");
    (result, byte)
}

#[test]
fn byte_of_preempted_vcpu_is_seen_by_spinner_that_took_its_cpu() {
    if !has_bpf() {
        return;
    }
    let (result, byte) = watch(&watching(PublisherKind::Bpf, 1));
    assert!(byte.other_samples > 1_000_000, "{byte:?}");
    assert!(byte.other_share() >= 0.99, "{byte:?} {:?}", result.window);
    assert_eq!(byte.own_set, 0, "{byte:?} {:?}", result.vcpus);
}

#[test]
fn byte_of_running_vcpu_is_clear_but_for_what_the_host_really_took() {
    if !has_bpf() || !has_two_cpus() {
        return;
    }
    let (result, byte) = watch(&watching(PublisherKind::Bpf, 2));
    assert_eq!(byte.own_set, 0, "{byte:?} {:?}", result.vcpus);
    // On two idle CPUs nothing is taken. Where strangers take something, the byte says so, and that is right; the
    // scheduler's own count is what it is held against.
    let window = result.window.expect("a window");
    let taken = window.host.run_delay_ns as f64 / (2.0 * window.length_ns as f64);
    assert!(byte.other_share() <= 0.01 + 2.0 * taken, "{byte:?}, taken {taken}");
}

#[test]
fn publisher_counts_every_preemption_that_the_scheduler_counts() {
    if !has_bpf() {
        return;
    }
    let (result, _) = watch(&watching(PublisherKind::Bpf, 1));
    let window = result.window.expect("a window");
    assert!(window.host.preemptions > 20, "{:?}", window.host);
    // Both counts begin and end with the thread running; between reading the one and reading the other it may lose its
    // CPU once.
    for vcpu in &result.vcpus {
        let outs = vcpu.publication.expect("the program counts").program.sched_out;
        assert!(vcpu.preemptions.abs_diff(outs) <= 1, "{vcpu:?}");
    }
}

#[test]
fn steal_in_the_record_is_the_run_delay_of_the_thread() {
    if !has_bpf() {
        return;
    }
    let (result, _) = watch(&watching(PublisherKind::Bpf, 1));
    let window = result.window.expect("a window");
    // Two vCPUs share one CPU: each waits half of the time. The guest's window and the host's differ at both ends by
    // as long as a vCPU or the main thread waits for the CPU, a few time slices.
    let (guest, host) = (window.guest_steal_ns as f64, window.host.run_delay_ns as f64);
    assert!(guest > 0.4 * window.length_ns as f64, "{window:?}");
    assert!((guest - host).abs() < 30e6, "guest {guest}, host {host}");
}

#[test]
fn kernel_s_own_publisher_accounts_steal_as_well() {
    if !has_kvm() {
        return;
    }
    let (result, byte) = watch(&watching(PublisherKind::Kernel, 1));
    let window = result.window.expect("a window");
    assert_eq!(byte.own_set, 0);
    assert!(window.guest_steal_ns as f64 > 0.4 * window.length_ns as f64, "{window:?}");
    // What it does with the byte is the host's affair. It is printed where both stand side by side: `vmm-lab bench byte`.
}
