//! What the test binaries share.

#![allow(dead_code, unused_imports, reason = "each test binary uses its own part")]
#![allow(clippy::print_stderr, reason = "the test harness captures it")]

pub(crate) mod elf;
mod exclusive;
mod fixture;
pub(crate) mod has;
mod process;

use std::time::Duration;

use host::cpus::Cpus;

pub(crate) use exclusive::{Exclusive, alone, judge_undisturbed, measure_undisturbed, shared, unjudged};
pub(crate) use fixture::Fixture;
pub(crate) use has::{needs, skip};
pub(crate) use process::{Ended, Running, end_of, kill, start, wait_for, wait_for_cpu_time};

/// A guest or process of a test that runs longer than this has hung.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// The host CPUs that this process may use.
pub(crate) fn cpus() -> Cpus {
    Cpus::allowed().expect("the CPUs of this process can be read")
}
