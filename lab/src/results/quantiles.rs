//! Quantiles of a list of times, all of which are known.

use serde::Serialize;

/// Half of the times were no longer than `p50_ns`, 99 in 100 no longer than `p99_ns`, all no longer than `most_ns`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Quantiles {
    /// How many there were.
    pub count: u64,
    /// The median.
    pub p50_ns: u64,
    /// 99 in 100.
    pub p99_ns: u64,
    /// The longest.
    pub most_ns: u64,
}

impl Quantiles {
    /// Those of `times` (ns).
    pub fn of(times: impl IntoIterator<Item = u64>) -> Self {
        let mut times: Vec<_> = times.into_iter().collect();
        times.sort_unstable();
        let at = |percent: usize| times.get((times.len() * percent / 100).min(times.len().saturating_sub(1)));
        let quantile = |percent| at(percent).copied().unwrap_or(0);
        Self { count: times.len() as u64, p50_ns: quantile(50), p99_ns: quantile(99), most_ns: quantile(100) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_sorted_times_and_zero_of_none() {
        assert_eq!(Quantiles::of([]), Quantiles::default());
        let times = Quantiles::of((1..=200).rev());
        assert_eq!((times.count, times.p50_ns, times.p99_ns, times.most_ns), (200, 101, 199, 200));
    }
}
