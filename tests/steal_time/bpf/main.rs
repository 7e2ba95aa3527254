//! The BPF publisher without a guest: threads stand in for vCPUs and read records as a guest does.
//!
//! Every count is compared with one that the kernel keeps: `status` and `schedstat` of the thread.
//! Tests that need the right to load BPF programs skip without it.

#![expect(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, clippy::print_stdout, reason = "the test harness captures it")]

mod contention;
mod object;
mod record;
mod reports;
mod single_thread;

use std::time::{Duration, Instant};

use protocol::VcpuId;
use steal_time::bpf::{BpfError, Program};

/// Far longer than anything here takes on any host.
const PATIENCE: Duration = Duration::from_secs(30);

/// Loads the program for `vcpus` vCPUs. Without the right to do so, prints that the test skips.
fn load(vcpus: usize) -> Option<Program> {
    match Program::load(vcpus, vcpus) {
        Ok(program) => Some(program),
        Err(error @ (BpfError::NotPermitted { .. } | BpfError::Unsupported { .. })) => {
            skip(&error.to_string());
            None
        }
        Err(error) => panic!("{}", chain(&error)),
    }
}

/// Prints that the calling test skips, and why.
fn skip(why: &str) {
    eprintln!("SKIPPED {}: {why}", std::thread::current().name().unwrap_or("a test"));
}

/// Spins until `condition` holds.
///
/// # Panics
/// If it does not within [`PATIENCE`].
fn spin_until(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < PATIENCE, "it never came that {what}");
    }
}

/// An error and its sources, as the monitor prints them.
fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

fn vcpu(index: usize) -> VcpuId {
    VcpuId::new(index).expect("a small index")
}
