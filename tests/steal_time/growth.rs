//! A guest does not make the monitor grow, however much it feeds it.

use std::fs;
use std::io::Read;
use std::process::Stdio;

use steal_time::publisher::PublisherKind;

use crate::support::{Fixture, has_publisher, start, vmm_run};

/// Inputs of the guest between two bytes of its console.
const INPUTS_PER_BYTE: u64 = 4 * 4096;
/// Inputs that are judged; `VMM_TEST_INPUTS` overrides it. The promise is made for 10^6.
const INPUTS: u64 = 100_000;
/// How far the monitor may grow.
const MAX_KIB: u64 = 64;

fn inputs() -> u64 {
    std::env::var("VMM_TEST_INPUTS").ok().and_then(|text| text.parse().ok()).unwrap_or(INPUTS)
}

/// Resident memory of a process (KiB).
fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has memory");
    let kib = line.split_ascii_whitespace().next().and_then(|kib| kib.parse().ok());
    kib.expect("VmRSS is a number")
}

/// Returns by how much the monitor grew over `inputs` of the guest, which it has fed before (KiB).
fn growth_kib(fixture: &Fixture, publisher: PublisherKind, inputs: u64) -> u64 {
    let publisher = publisher.to_string();
    let mut monitor =
        vmm_run(["--vcpus", "1", "--memory", "16", "--publisher", &publisher, "--timeout", "55"]);
    monitor.args(["--quiet", "--payload", fixture.arg()]).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut running = start(&mut monitor);
    let mut console = running.take_stdout().expect("it is piped");
    let mut wait_for_bytes = |count: u64| {
        for _ in 0..count {
            let mut byte = [0];
            console.read_exact(&mut byte).expect("the guest runs on");
            assert_eq!(&byte, b".");
        }
    };
    // Each page of RAM that the guest names is resident from now on
    wait_for_bytes(1);
    let before = resident_kib(running.id());
    wait_for_bytes(inputs.div_ceil(INPUTS_PER_BYTE));
    resident_kib(running.id()).saturating_sub(before)
}

#[test]
fn storm_of_msr_and_port_writes_does_not_grow_the_monitor() {
    let fixture = Fixture::assembled("storm.S");
    for publisher in [PublisherKind::Perf, PublisherKind::Monitor] {
        if has_publisher(publisher) {
            let grown = growth_kib(&fixture, publisher, inputs());
            assert!(grown <= MAX_KIB, "{publisher}: {grown} KiB");
        }
    }
}
