//! Quantiles of a list of times.

use serde::Serialize;

use super::statistics::quantile;

/// Quantiles of a list of times; all 0 for an empty list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Quantiles {
    /// Number of times.
    pub count: u64,
    /// Median (ns).
    pub p50_ns: u64,
    /// 99th percentile (ns).
    pub p99_ns: u64,
    /// Maximum (ns).
    pub max_ns: u64,
}

impl Quantiles {
    /// Computes the quantiles of `times` (ns).
    pub fn of(times: impl IntoIterator<Item = u64>) -> Self {
        let mut times: Vec<_> = times.into_iter().collect();
        times.sort_unstable();
        let [p50_ns, p99_ns, max_ns] = [0.5, 0.99, 1.0].map(|share| quantile(&times, share).unwrap_or(0));
        Self { count: times.len() as u64, p50_ns, p99_ns, max_ns }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_sorted_times_and_zero_of_none() {
        assert_eq!(Quantiles::of([]), Quantiles::default());
        let times = Quantiles::of((1..=200).rev());
        assert_eq!((times.count, times.p50_ns, times.p99_ns, times.max_ns), (200, 100, 198, 200));
    }
}
