//! The one clock that everybody's stamps are compared by.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Now, by the host's monotonic clock: the one that perf stamps its records with. It needs no system call.
pub fn monotonic() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default()
}

/// Now, in ns.
pub fn monotonic_ns() -> u64 {
    u64::try_from(monotonic().as_nanos()).unwrap_or(u64::MAX)
}
