//! What a witness in the guest saw of another vCPU's byte, by that vCPU's own signs of life.

use std::sync::atomic::Ordering;

use protocol::report::{LAG_BIAS, Report, VcpuReport, Wrong};
use serde::Serialize;

use super::statistics::{ns, ratio, read};
use super::times::{Times, histogram};

/// See the module. Times are by the guest's clock.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct SightFigures {
    /// Looks.
    pub looks: u64,
    /// How long it looked, absences left out.
    pub observed_ns: u64,
    /// Times that the witness itself lost its CPU.
    pub absences: u64,
    /// How far the clocks of the two vCPUs are apart at least, if they are: then nothing here is to be believed.
    pub clocks_apart_ns: Option<u64>,
    /// Times that the other stood still, for 50 us or more.
    pub stalls: u64,
    /// For how long, all told.
    pub stalled_ns: u64,
    /// Of the stalls, how many the byte never told of.
    pub unmarked: u64,
    /// Times that the byte was set and cleared while the other ran on.
    pub falsely_set: u64,
    /// From the last sign of life to the byte seen set.
    pub out_latency: Latency,
    /// From the first sign of life to the byte seen clear; 0 where it was clear before.
    pub in_latency: Latency,
    /// The byte was set, and the other ran.
    pub wrongly_set: Stretches,
    /// The byte was clear, and the other stood still.
    pub wrongly_clear: Stretches,
}

/// Latencies, of which there may be none.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Latency {
    /// How many.
    pub count: u64,
    /// Half of them were not longer.
    pub p50_ns: u64,
    /// 99 in 100 were not longer.
    pub p99_ns: u64,
    /// The longest.
    pub longest_ns: u64,
}

/// How wrong the byte was in one direction.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Stretches {
    /// All told.
    pub total_ns: u64,
    /// The longest.
    pub longest_ns: u64,
}

impl SightFigures {
    /// What the last of `vcpus` vCPUs saw of the first.
    pub fn new(report: &Report, vcpus: usize) -> Option<Self> {
        let vcpus = report.vcpus.get(..vcpus)?;
        let [watched, .., witness] = vcpus else { return None };
        let khz = report.header.tsc_khz.load(Ordering::Relaxed);
        let sight = &witness.sight;
        let stretches = |wrong: &Wrong| Stretches {
            total_ns: ns(read(&wrong.total), khz),
            longest_ns: ns(read(&wrong.longest), khz),
        };
        Some(Self {
            looks: read(&sight.looks),
            observed_ns: ns(read(&sight.observed), khz),
            absences: read(&sight.absences),
            clocks_apart_ns: clocks_apart(read(&sight.least_lag), khz),
            stalls: read(&sight.stalls),
            stalled_ns: ns(read(&sight.stalled), khz),
            unmarked: read(&sight.unmarked),
            falsely_set: read(&sight.falsely_set),
            out_latency: Latency::of(witness, khz),
            in_latency: Latency::of(watched, khz),
            wrongly_set: stretches(&sight.wrongly_set),
            wrongly_clear: stretches(&sight.wrongly_clear),
        })
    }

    /// This much time, as a share of what was looked at.
    pub fn share(&self, time_ns: u64) -> f64 {
        ratio(time_ns as f64, self.observed_ns as f64)
    }
}

/// The nearest that a sign of life was to the look that found it is the way of a cache line, if both have one clock. It
/// may be less than nothing by what two processors' counters differ.
fn clocks_apart(least_lag: u64, khz: u32) -> Option<u64> {
    const LONGEST_WAY_NS: u64 = 2_000;
    const COUNTERS_DIFFER_NS: u64 = 500;
    if least_lag == 0 {
        return None; // no sign was ever seen to be given
    }
    let least_lag = least_lag.wrapping_sub(LAG_BIAS).cast_signed();
    let apart_ns = ns(least_lag.unsigned_abs(), khz);
    let most_ns = if least_lag < 0 { COUNTERS_DIFFER_NS } else { LONGEST_WAY_NS };
    (apart_ns > most_ns).then_some(apart_ns)
}

impl Latency {
    fn of(vcpu: &VcpuReport, khz: u32) -> Self {
        let waits = histogram(std::slice::from_ref(vcpu), |vcpu| &vcpu.waits, khz);
        let times = Times::new(&waits, Some(ns(read(&vcpu.longest_wait), khz)));
        Self { count: times.count, p50_ns: times.p50_ns, p99_ns: times.p99_ns, longest_ns: times.longest_ns }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_are_apart_when_a_sign_is_from_the_future_or_never_fresh() {
        let apart = |lag: i64, khz| clocks_apart(LAG_BIAS.wrapping_add_signed(lag), khz);
        assert_eq!(apart(300, 1_000_000), None);
        assert_eq!(apart(-300, 1_000_000), None);
        assert_eq!(apart(-700, 1_000_000), Some(700));
        assert_eq!(apart(5_000, 1_000_000), Some(5_000));
        assert_eq!(apart(i64::MAX, 1), Some(u64::MAX));
        assert_eq!(clocks_apart(0, 1_000_000), None);
    }
}
