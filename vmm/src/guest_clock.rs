//! The guest's clock: its TSC, placed on the host's monotonic clock.

use std::time::{Duration, Instant};

use kvm_ioctls::VcpuFd;

use host::clock;
use steal_time::kvm_msr;

/// A guest's TSC against the monitor's clock: one moment seen on both, and the rate.
#[derive(Clone, Copy, Debug)]
pub struct GuestClock {
    /// The moment.
    pub at: Instant,
    /// The same moment by the host's monotonic clock (ns).
    pub at_ns: u64,
    /// The guest's TSC then.
    pub tsc: u64,
    /// Its rate.
    pub khz: u32,
}

impl GuestClock {
    /// Reads the TSC of vCPU `fd` and the host's clock at one moment; `None` if KVM does not report the TSC.
    pub fn read(fd: &VcpuFd) -> Option<Self> {
        let khz = fd.get_tsc_khz().ok()?;
        let (at, at_ns) = (Instant::now(), clock::monotonic_ns());
        Some(Self { at, at_ns, tsc: kvm_msr::read(fd, kvm_msr::TSC)?, khz })
    }

    /// What the guest's TSC reads at `at_ns` of the host's monotonic clock.
    pub fn tsc_at(&self, at_ns: u64) -> u64 {
        let cycles = u128::from(at_ns.abs_diff(self.at_ns)) * u128::from(self.khz) / 1_000_000;
        let cycles = u64::try_from(cycles).unwrap_or(u64::MAX);
        if at_ns < self.at_ns { self.tsc.saturating_sub(cycles) } else { self.tsc.saturating_add(cycles) }
    }

    /// When the guest's TSC read `tsc`, by the host's monotonic clock (ns).
    pub fn monotonic_ns_at(&self, tsc: u64) -> u64 {
        let apart = u64::try_from(cycles_to_duration(tsc.abs_diff(self.tsc), self.khz).as_nanos());
        let apart = apart.unwrap_or(u64::MAX);
        if tsc < self.tsc { self.at_ns.saturating_sub(apart) } else { self.at_ns.saturating_add(apart) }
    }

    /// When the guest's TSC read `tsc`; `None` if that was before time began.
    pub fn moment(&self, tsc: u64) -> Option<Instant> {
        let apart = cycles_to_duration(tsc.abs_diff(self.tsc), self.khz);
        if tsc < self.tsc { self.at.checked_sub(apart) } else { self.at.checked_add(apart) }
    }
}

/// How long `cycles` of a TSC of this rate take; nothing at no rate.
pub fn cycles_to_duration(cycles: u64, khz: u32) -> Duration {
    let ns = u128::from(cycles) * 1_000_000 / u128::from(khz.max(1));
    Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_tsc_is_placed_on_the_monitor_s_clock() {
        let at = Instant::now();
        let clock = GuestClock { at, at_ns: 5_000, tsc: 1000, khz: 2_000_000 };
        assert_eq!((clock.monotonic_ns_at(3000), clock.monotonic_ns_at(0)), (6_000, 4_500));
        assert_eq!((clock.tsc_at(6_000), clock.tsc_at(4_500), clock.tsc_at(0)), (3000, 0, 0));
        assert_eq!(clock.moment(3000), Some(at + Duration::from_micros(1)));
        assert_eq!(clock.moment(0).map(|moment| at.duration_since(moment)), Some(Duration::from_nanos(500)));
        assert_eq!(cycles_to_duration(u64::MAX, 0), Duration::from_nanos(u64::MAX));
    }
}
