//! Statistics of what a guest reports. It is guest memory: whatever it holds, nothing here overflows or panics.

use std::sync::atomic::{AtomicU64, Ordering};

use protocol::payload::report::VcpuReport;

use vmm::guest_clock::cycles_to_duration;

/// A counter as it is now.
pub(super) fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// All vCPUs' counts together.
pub(super) fn sum(vcpus: &[VcpuReport], field: fn(&VcpuReport) -> &AtomicU64) -> u64 {
    vcpus.iter().fold(0, |sum, vcpu| sum.saturating_add(read(field(vcpu))))
}

/// `cycles` of a clock of `khz`, in ns.
pub(super) fn ns(cycles: u64, khz: u32) -> u64 {
    u64::try_from(cycles_to_duration(cycles, khz).as_nanos()).unwrap_or(u64::MAX)
}

/// `part / whole`, and 0 of nothing.
pub(super) fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

/// Jain's index of fairness: 1 when all are equal, 1/n when one has all.
pub(super) fn jain(shares: impl Iterator<Item = f64>) -> f64 {
    let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
    for share in shares {
        count += 1.0;
        sum += share;
        squares += share * share;
    }
    ratio(sum * sum, count * squares)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jain_is_one_for_equal_shares_and_one_nth_for_a_single_taker() {
        assert!((jain([5.0; 8].into_iter()) - 1.0).abs() < 1e-12);
        assert!((jain([9.0, 0.0, 0.0, 0.0].into_iter()) - 0.25).abs() < 1e-12);
        assert!(jain([0.0, 0.0].into_iter()).abs() < 1e-12);
    }
}
