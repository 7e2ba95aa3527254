//! The monotonic clock, by which all timestamps are compared.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Returns the time of `CLOCK_MONOTONIC`, the clock of perf's timestamps here. It needs no system
/// call (vDSO).
pub fn monotonic() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default()
}

/// Returns the time of `CLOCK_MONOTONIC` in ns.
pub fn monotonic_ns() -> u64 {
    u64::try_from(monotonic().as_nanos()).unwrap_or(u64::MAX)
}
