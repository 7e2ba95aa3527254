//! Disturbance: the CPU time that others took from a measurement, and whether its figures count.
//!
//! Two things take CPU time from a measurement: tasks of other processes and, if the host is itself
//! a virtual machine, an outer hypervisor. The kernel counts both in `/proc/stat`. One rule judges
//! every measurement by them, and never by its result. It is disturbed by
//!
//! - **an outer hypervisor** that takes more than 1 % of the time of one CPU. A p99 stands for 1 %
//!   of the events, so less cannot move it by itself. The kernel counts this time exactly.
//! - **other tasks** that take more than 6 % of one CPU. The kernel counts busy time by sampling
//!   at ticks, and own time exactly; their difference is no better on a loaded CPU.
//!
//! Neither limit is below the resolution of `/proc/stat`, a tick of 10 ms for each CPU. Counts of
//! several measurements are added before they are judged: the sum is more exact than each.

use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use serde::{Serialize, Serializer};

use super::cpus::Cpus;
use super::stats::CpuStats;

/// Share of one CPU that an outer hypervisor may take.
const STOLEN: f64 = 0.01;

/// Share of one CPU that other tasks may take.
const OTHER_TASKS: f64 = 0.06;

/// Resolution of `/proc/stat` for one CPU: `USER_HZ` is 100.
const RESOLUTION: Duration = Duration::from_millis(10);

/// Whether figures count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// They do.
    Known,
    /// What was counted is incomplete, or contradicts itself.
    Unknown,
    /// Others took CPU time: the figures may show them, and not what was measured.
    Disturbed,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Known => "known",
            Self::Unknown => "unknown",
            Self::Disturbed => "disturbed",
        })
    }
}

/// The CPU time that others took from a measurement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Disturbance {
    length: Duration,
    /// Number of CPUs.
    cpus: usize,
    /// Use of the CPUs meanwhile; `None` if it could not be read.
    used: Option<CpuStats>,
}

impl Disturbance {
    /// What was taken in a measurement of `length` on `cpus` CPUs, of which `used` was counted.
    /// `None`: the counts could not be read.
    pub const fn new(length: Duration, cpus: usize, used: Option<CpuStats>) -> Self {
        Self { length, cpus, used }
    }

    /// A measurement of which nothing was counted.
    pub const fn unknown() -> Self {
        Self::new(Duration::ZERO, 0, None)
    }

    /// What was taken in both of two measurements on the same CPUs, one after the other.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let used = self.used.zip(other.used).map(|(one, other)| one.plus(other));
        Self { length: self.length + other.length, cpus: self.cpus.max(other.cpus), used }
    }

    /// Returns whether the figures of the measurement count, by the rule of this module.
    pub fn verdict(&self) -> Verdict {
        let Some(used) = self.used else { return Verdict::Unknown };
        let resolution = RESOLUTION * u32::try_from(self.cpus).unwrap_or(u32::MAX);
        let exceeds = |taken: Duration, share| taken > self.length.mul_f64(share).max(resolution);
        if exceeds(used.stolen, STOLEN) || exceeds(used.other_tasks(), OTHER_TASKS) {
            Verdict::Disturbed
        } else {
            Verdict::Known
        }
    }

    /// Number of CPUs that other tasks used, on average; not finite for a length of 0.
    pub fn other_tasks_cpus(&self) -> f64 {
        self.cpus_of(CpuStats::other_tasks)
    }

    /// Number of CPUs that an outer hypervisor took, on average; not finite for a length of 0.
    pub fn steal_cpus(&self) -> f64 {
        self.cpus_of(|used| used.stolen)
    }

    /// Share of all CPU time that others took; not finite for a length of 0.
    pub fn share(&self) -> f64 {
        (self.other_tasks_cpus() + self.steal_cpus()) / self.cpus as f64
    }

    fn cpus_of(&self, time: impl Fn(&CpuStats) -> Duration) -> f64 {
        let used = self.used.as_ref().map_or(f64::NAN, |used| time(used).as_secs_f64());
        used / self.length.as_secs_f64()
    }
}

impl fmt::Display for Disturbance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(used) = self.used else { return f.write_str("/proc/stat cannot be read") };
        let (others, stolen, length) = (used.other_tasks(), used.stolen, self.length);
        write!(
            f,
            "in {length:.0?} other tasks ran for {others:.0?}, and an outer hypervisor took {stolen:.0?}"
        )
    }
}

impl Serialize for Disturbance {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Document {
            /// CPU time of other tasks, in CPUs.
            other_tasks_cpus: f64,
            /// CPU time that an outer hypervisor took, in CPUs.
            steal_cpus: f64,
            verdict: Verdict,
        }
        let (other_tasks_cpus, steal_cpus) = (self.other_tasks_cpus(), self.steal_cpus());
        Document { other_tasks_cpus, steal_cpus, verdict: self.verdict() }.serialize(serializer)
    }
}

/// Counts what others take from a set of CPUs, from its creation on.
#[derive(Debug)]
pub struct Watch {
    cpus: Cpus,
    at: Instant,
    before: io::Result<CpuStats>,
}

impl Watch {
    /// Starts to count.
    pub fn start(cpus: Cpus) -> Self {
        let before = CpuStats::read(&cpus);
        Self { cpus, at: Instant::now(), before }
    }

    /// Returns what others took so far.
    pub fn disturbance(&self) -> Disturbance {
        let length = self.at.elapsed();
        let used = match (&self.before, CpuStats::read(&self.cpus)) {
            (Ok(before), Ok(now)) => Some(now.since(*before)),
            _ => None,
        };
        Disturbance::new(length, self.cpus.count(), used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn taken(length_ms: u64, cpus: usize, (busy, own, stolen): (u64, u64, u64)) -> Disturbance {
        let used = CpuStats { busy: ms(busy), own: ms(own), stolen: ms(stolen) };
        Disturbance::new(ms(length_ms), cpus, Some(used))
    }

    #[test]
    fn outer_hypervisor_disturbs_from_one_percent_of_a_cpu_but_not_within_the_resolution() {
        assert_eq!(taken(500, 2, (1000, 1000, 20)).verdict(), Verdict::Known);
        assert_eq!(taken(500, 2, (1000, 1000, 30)).verdict(), Verdict::Disturbed);
        assert_eq!(taken(5_000, 2, (9000, 9000, 50)).verdict(), Verdict::Known);
        assert_eq!(taken(5_000, 2, (9000, 9000, 60)).verdict(), Verdict::Disturbed);
        assert_eq!(taken(500, 1, (500, 500, 20)).verdict(), Verdict::Disturbed);
    }

    #[test]
    fn other_tasks_disturb_from_six_percent_of_a_cpu_and_own_threads_never() {
        assert_eq!(taken(1_000, 2, (2000, 1950, 0)).verdict(), Verdict::Known);
        assert_eq!(taken(1_000, 2, (2000, 1900, 0)).verdict(), Verdict::Disturbed);
        assert!((taken(1_000, 2, (2000, 1900, 100)).share() - 0.1).abs() < 1e-9);
    }

    #[test]
    fn counts_that_cannot_be_read_are_unknown_and_never_known() {
        let unread = Disturbance::new(ms(500), 2, None);
        assert_eq!(unread.verdict(), Verdict::Unknown);
        assert_eq!(unread.and(taken(500, 2, (0, 0, 0))).verdict(), Verdict::Unknown);
        assert!(unread.share().is_nan());
    }

    #[test]
    fn sum_of_short_measurements_is_judged_as_one() {
        let short = taken(30, 2, (30, 30, 10));
        assert_eq!(short.verdict(), Verdict::Known);
        assert_eq!(short.and(short).and(short).verdict(), Verdict::Disturbed);
        // The tick of a busy CPU may come early in one and late in the next
        let (early, late) = (taken(30, 2, (60, 30, 0)), taken(30, 2, (0, 30, 0)));
        assert_eq!((early.verdict(), early.and(late).verdict()), (Verdict::Disturbed, Verdict::Known));
    }

    #[test]
    fn document_has_the_amounts_and_the_verdict_and_null_for_a_length_of_zero() {
        let document = |disturbance| serde_json::to_value(disturbance).unwrap();
        let expected =
            serde_json::json!({"other_tasks_cpus": 0.0, "steal_cpus": 0.25, "verdict": "disturbed"});
        assert_eq!(document(taken(1_000, 2, (500, 500, 250))), expected);
        let empty = document(taken(0, 2, (0, 0, 0)));
        assert!(empty["steal_cpus"].is_null() && empty["other_tasks_cpus"].is_null(), "{empty}");
    }
}
