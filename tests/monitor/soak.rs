//! A thousand short guests in a row leave nothing behind.
//!
//! This is the only test of its process, since it counts everything that the process holds.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../support/lab.rs"]
mod support;

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use steal_time::publisher::PublisherKind;
use support::bpf_ids::Id;
use support::{LIMIT, guest, has, needs, run};
use vmm::supervise::Outcome;

const GUESTS: usize = 1000;

fn entries(folder: &str) -> usize {
    fs::read_dir(folder).expect("/proc is mounted").count()
}

/// Waits until this process has at most `threads` threads. A joined thread may still be exiting.
fn wait_for_threads(threads: usize) {
    let began = Instant::now();
    while entries("/proc/self/task") > threads {
        assert!(began.elapsed() < LIMIT, "{} threads are left", entries("/proc/self/task") - threads);
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn thousand_guests_leave_no_descriptor_thread_or_bpf_program() {
    needs!(kvm);
    let (threads, programs) = (entries("/proc/self/task"), Id::all_programs());
    let publisher = if has::bpf() { PublisherKind::Bpf } else { PublisherKind::Kernel };
    let config = guest(2, publisher, "job=idle warmup_ms=1 duration_ms=1");
    // The first guest opens what the process keeps
    run(&config);
    let descriptors = entries("/proc/self/fd");
    for round in 0..GUESTS {
        let (run, result) = run(&config);
        assert!(matches!(run.monitor.outcome, Outcome::Reset), "guest {round}: {:?}", result.outcome);
    }
    assert_eq!(entries("/proc/self/fd"), descriptors);
    wait_for_threads(threads);
    Id::wait_until_gone(&Id::all_programs().difference(&programs).copied().collect());
}
