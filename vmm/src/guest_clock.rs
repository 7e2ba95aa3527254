//! The guest's clock: converts between its TSC and `CLOCK_MONOTONIC`.

use std::time::{Duration, Instant};

use host::clock;
use kvm_ioctls::VcpuFd;
use steal_time::kvm_msr;

/// One moment on the guest's TSC and on the host's clock, and the rate of the TSC.
#[derive(Clone, Copy, Debug)]
pub struct GuestClock {
    /// The moment on the host's clock.
    pub at: Instant,
    /// The same moment (ns of `CLOCK_MONOTONIC`).
    pub at_ns: u64,
    /// The guest's TSC at that moment.
    pub tsc: u64,
    /// The rate of the TSC (kHz).
    pub khz: u32,
}

impl GuestClock {
    /// Reads the TSC of vCPU `fd` and the host's clock at one moment; `None` if KVM does not report
    /// the TSC.
    pub fn read(fd: &VcpuFd) -> Option<Self> {
        let khz = fd.get_tsc_khz().ok()?;
        let (at, at_ns) = (Instant::now(), clock::monotonic_ns());
        Some(Self { at, at_ns, tsc: kvm_msr::read(fd, kvm_msr::TSC)?, khz })
    }

    /// Returns the guest's TSC at `at_ns` (ns of `CLOCK_MONOTONIC`).
    pub fn tsc_at(&self, at_ns: u64) -> u64 {
        let cycles = u128::from(at_ns.abs_diff(self.at_ns)) * u128::from(self.khz) / 1_000_000;
        let cycles = u64::try_from(cycles).unwrap_or(u64::MAX);
        if at_ns < self.at_ns { self.tsc.saturating_sub(cycles) } else { self.tsc.saturating_add(cycles) }
    }

    /// Returns when the guest's TSC was `tsc` (ns of `CLOCK_MONOTONIC`).
    pub fn monotonic_ns_at(&self, tsc: u64) -> u64 {
        let apart = u64::try_from(cycles_to_duration(tsc.abs_diff(self.tsc), self.khz).as_nanos());
        let apart = apart.unwrap_or(u64::MAX);
        if tsc < self.tsc { self.at_ns.saturating_sub(apart) } else { self.at_ns.saturating_add(apart) }
    }

    /// Returns when the guest's TSC was `tsc`; `None` if an [`Instant`] cannot represent it.
    pub fn moment(&self, tsc: u64) -> Option<Instant> {
        let apart = cycles_to_duration(tsc.abs_diff(self.tsc), self.khz);
        if tsc < self.tsc { self.at.checked_sub(apart) } else { self.at.checked_add(apart) }
    }
}

/// Converts `cycles` of a TSC with a rate of `khz` to a duration. A rate of 0 counts as 1 kHz.
pub fn cycles_to_duration(cycles: u64, khz: u32) -> Duration {
    let ns = u128::from(cycles) * 1_000_000 / u128::from(khz.max(1));
    Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_tsc_is_no_earlier_on_the_host_clock_whatever_the_rate() {
        for khz in [0, 1, 7, 999_999, 2_100_001, 3_000_000, u32::MAX] {
            let tsc = 1 << 40;
            let clock = GuestClock { at: Instant::now(), at_ns: 1 << 50, tsc, khz };
            let near = (tsc - 5_000..tsc + 5_000).map(|tsc| clock.monotonic_ns_at(tsc));
            let far = [0, 1, tsc / 2].into_iter().map(|tsc| clock.monotonic_ns_at(tsc));
            let times: Vec<_> = far.chain(near).chain([clock.monotonic_ns_at(u64::MAX)]).collect();
            assert!(times.is_sorted(), "{khz} kHz");
        }
    }

    #[test]
    fn tsc_and_host_clock_convert_in_both_directions() {
        let at = Instant::now();
        let clock = GuestClock { at, at_ns: 5_000, tsc: 1000, khz: 2_000_000 };
        assert_eq!((clock.monotonic_ns_at(3000), clock.monotonic_ns_at(0)), (6_000, 4_500));
        assert_eq!((clock.tsc_at(6_000), clock.tsc_at(4_500), clock.tsc_at(0)), (3000, 0, 0));
        assert_eq!(clock.moment(3000), Some(at + Duration::from_micros(1)));
        assert_eq!(clock.moment(0).map(|moment| at.duration_since(moment)), Some(Duration::from_nanos(500)));
        assert_eq!(cycles_to_duration(u64::MAX, 0), Duration::from_nanos(u64::MAX));
    }
}
