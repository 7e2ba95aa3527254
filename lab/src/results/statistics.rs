//! Statistics of results, and counters of guest memory, which may hold any value.

use std::sync::atomic::{AtomicU64, Ordering};

use protocol::payload::report::VcpuReport;

use vmm::guest_clock::cycles_to_duration;

/// Reads a counter of guest memory.
pub(super) fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// Sums a counter over all vCPUs, saturating.
pub(super) fn sum(vcpus: &[VcpuReport], field: fn(&VcpuReport) -> &AtomicU64) -> u64 {
    vcpus.iter().fold(0, |sum, vcpu| sum.saturating_add(read(field(vcpu))))
}

/// Converts `cycles` of a clock of `khz` to ns, saturating.
pub(super) fn ns(cycles: u64, khz: u32) -> u64 {
    u64::try_from(cycles_to_duration(cycles, khz).as_nanos()).unwrap_or(u64::MAX)
}

/// Returns `part / whole`, or NaN if `whole` is not positive: tables show it as `-`, JSON as null.
pub(crate) fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { f64::NAN }
}

/// Returns a count per second in a window of `length_ns`; NaN if it has no length.
pub(crate) fn per_second(count: u64, length_ns: u64) -> f64 {
    ratio(count as f64 * 1e9, length_ns as f64)
}

/// Returns Jain's index of fairness: 1 for equal shares, 1/n if one of n takes all; NaN if none
/// takes anything.
pub(super) fn jain(shares: impl Iterator<Item = f64>) -> f64 {
    let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
    for share in shares {
        count += 1.0;
        sum += share;
        squares += share * share;
    }
    ratio(sum * sum, count * squares)
}

/// Returns the middle value, or the mean of the two middle values of an even number. Values that
/// are not finite do not count.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        len if len % 2 == 1 => values.get(middle).copied(),
        _ => Some(f64::midpoint(*values.get(middle - 1)?, *values.get(middle)?)),
    }
}

/// Returns the smallest value of `sorted` that at least the fraction `share` of all values does not
/// exceed; `None` if there is none.
pub(crate) fn quantile<T: Copy>(sorted: &[T], share: f64) -> Option<T> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank within the slice")]
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1).min(sorted.len().checked_sub(1)?)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jain_is_one_for_equal_shares_and_one_nth_for_a_single_taker() {
        assert!((jain([5.0; 8].into_iter()) - 1.0).abs() < 1e-12);
        assert!((jain([9.0, 0.0, 0.0, 0.0].into_iter()) - 0.25).abs() < 1e-12);
        assert!(jain([0.0, 0.0].into_iter()).is_nan());
    }

    #[test]
    fn median_of_an_even_number_is_between_the_two_in_the_middle() {
        assert_eq!(median([]), None);
        assert_eq!(median([3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median([4.0, f64::NAN, f64::INFINITY]), Some(4.0), "of the finite ones");
    }

    #[test]
    fn rate_of_an_empty_window_does_not_exist() {
        assert!(per_second(5, 0).is_nan() && per_second(0, 0).is_nan());
        assert!((per_second(5, 500_000_000) - 10.0).abs() < 1e-9);
    }

    #[test]
    fn quantile_is_the_smallest_value_that_enough_values_do_not_exceed() {
        let sorted: Vec<i64> = (-9..=10).collect();
        let quantiles = [0.0, 0.5, 0.51, 0.99, 1.0].map(|share| quantile(&sorted, share));
        assert_eq!(quantiles, [-9, 0, 1, 10, 10].map(Some));
        assert_eq!(quantile::<i64>(&[], 0.5), None);
    }
}
