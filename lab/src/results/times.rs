//! Distributions of times that a guest has counted by bucket.
//!
//! The guest counts in few fixed buckets ([`protocol::payload::histogram`]). They are converted to
//! an HDR histogram in ns. A bucket counts as its upper end, so no quantile is too low.

use std::sync::atomic::{AtomicU32, Ordering};

use hdrhistogram::Histogram;
use protocol::payload::histogram::{BUCKETS, bucket_floor};
use protocol::payload::report::VcpuReport;
use serde::Serialize;

use super::statistics::ns;

/// Quantiles of a distribution.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Times {
    /// Number of times.
    pub count: u64,
    /// Median (ns).
    pub p50_ns: u64,
    /// 90th percentile (ns).
    pub p90_ns: u64,
    /// 99th percentile (ns).
    pub p99_ns: u64,
    /// 99.9th percentile (ns).
    pub p999_ns: u64,
    /// Longest time (ns).
    pub longest_ns: u64,
    /// Lengths (ns), each with the number of times that had it, if any had.
    pub histogram: Vec<(u64, u64)>,
}

/// A field of a vCPU's report that counts by bucket.
pub(super) type Buckets = fn(&VcpuReport) -> &[AtomicU32; BUCKETS];

/// Merges what `vcpus` have counted in `field` into a histogram in ns.
pub(super) fn histogram(vcpus: &[VcpuReport], field: Buckets, khz: u32) -> Histogram<u64> {
    let mut histogram = empty();
    for vcpu in vcpus {
        for (bucket, count) in field(vcpu).iter().enumerate() {
            let count = count.load(Ordering::Relaxed);
            if count > 0 {
                let end = bucket_floor(bucket + 1).map_or(u64::MAX, |floor| floor - 1);
                histogram.saturating_record_n(ns(end, khz), count.into());
            }
        }
    }
    histogram
}

/// Weights `times` by their length, and adds those `still` going on (ns).
///
/// Quantiles per grant hide stalls, because few waits fall into them. Weighted by time they show:
/// this is the wait in which a waiting vCPU is found at a random moment.
pub(super) fn by_time(times: &Histogram<u64>, still: impl Iterator<Item = u64>) -> Histogram<u64> {
    // A hundred days of waiting per bucket. A thousand buckets of these do not overflow the counts.
    const MOST: u64 = 1 << 53;
    let mut weighted = empty();
    for value in times.iter_recorded() {
        let length = value.value_iterated_to();
        weighted.saturating_record_n(length, value.count_at_value().saturating_mul(length).min(MOST));
    }
    for length in still {
        weighted.saturating_record_n(length, length.min(MOST));
    }
    weighted
}

/// An empty histogram of up to an hour, with three significant figures.
fn empty() -> Histogram<u64> {
    const HOUR_NS: u64 = 3_600_000_000_000;
    Histogram::new_with_max(HOUR_NS, 3)
        .unwrap_or_else(|_| unreachable!("three figures, and more than two values"))
}

impl Times {
    /// Returns a quantile (ns) that `pick` takes; NaN if there were no times.
    pub fn quantile_ns(&self, pick: impl Fn(&Self) -> u64) -> f64 {
        if self.count == 0 { f64::NAN } else { pick(self) as f64 }
    }

    /// Takes the quantiles of `times`. `longest_ns` is the exact longest time, if it is known.
    pub(super) fn new(times: &Histogram<u64>, longest_ns: Option<u64>) -> Self {
        let longest_ns = longest_ns.unwrap_or_else(|| times.max());
        let quantile = |share| times.value_at_quantile(share).min(longest_ns);
        Self {
            count: times.len(),
            p50_ns: quantile(0.5),
            p90_ns: quantile(0.9),
            p99_ns: quantile(0.99),
            p999_ns: quantile(0.999),
            longest_ns,
            histogram: times
                .iter_recorded()
                .map(|value| (value.value_iterated_to(), value.count_at_value()))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(lengths: impl IntoIterator<Item = u64>) -> Histogram<u64> {
        let vcpu = VcpuReport::new();
        lengths.into_iter().for_each(|length| vcpu.record_wait(length));
        histogram(std::slice::from_ref(&vcpu), |vcpu| &vcpu.waits, 1_000_000)
    }

    #[test]
    fn quantile_is_the_end_of_its_bucket() {
        let times = Times::new(&waits((1..=7).chain([1000])), Some(1000));
        assert_eq!((times.count, times.p50_ns, times.longest_ns), (8, 4, 1000));
        assert_eq!(times.p99_ns, 1000, "no quantile exceeds the longest time");
        assert_eq!(Times::new(&waits([]), None).p50_ns, 0);
    }

    #[test]
    fn stall_in_few_grants_is_most_of_the_waiting_time() {
        // A hundred thousand waits of a microsecond, and one of a second.
        let times = waits(std::iter::repeat_n(1_000, 100_000).chain([1_000_000_000]));
        assert!(Times::new(&times, None).p999_ns < 1_200);
        let by_time = Times::new(&by_time(&times, std::iter::empty()), None);
        assert!(by_time.p50_ns > 900_000_000, "{by_time:?}");
    }

    #[test]
    fn unfinished_wait_counts_with_its_length_so_far() {
        let times = waits([1_000; 1000]);
        let by_time = Times::new(&by_time(&times, std::iter::once(50_000_000)), None);
        assert!(by_time.p50_ns > 49_000_000, "{by_time:?}");
    }

    #[test]
    fn maximal_counts_and_rates_do_not_overflow() {
        let vcpu = VcpuReport::new();
        vcpu.waits.iter().for_each(|bucket| bucket.store(u32::MAX, Ordering::Relaxed));
        for khz in [0, 1, u32::MAX] {
            let times = histogram(&[vcpu_like(&vcpu), vcpu_like(&vcpu)], |vcpu| &vcpu.waits, khz);
            let by_time = by_time(&times, [u64::MAX; 3].into_iter());
            assert!(Times::new(&by_time, Some(u64::MAX)).count > 0);
        }
    }

    fn vcpu_like(other: &VcpuReport) -> VcpuReport {
        let vcpu = VcpuReport::new();
        for (to, from) in vcpu.waits.iter().zip(&other.waits) {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        vcpu
    }
}
