//! Migration: the vCPU's thread moves between two CPUs all the time, and its switches are counted.
//!
//! No sampler judges the byte meanwhile: on a host of two CPUs none is left to sample from. What is
//! checked is whether the publisher counted each switch and added the right steal.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::counts::{ObservedCounts, Snapshot};
use super::test_guest::TestGuest;
use super::{RING_PAGES, Setup};
use crate::error::{Error, pause};
use crate::runner::Measurement;
use host::disturbance::{Disturbance, Verdict, Watch};
use host::perf::SwitchLog;

/// Time between two migrations.
const BETWEEN_MIGRATIONS: Duration = Duration::from_micros(700);

/// What was counted of a vCPU whose thread migrated.
#[derive(Debug, Serialize)]
pub struct Migration {
    /// Whether the counts are those of what was measured.
    pub verdict: Verdict,
    /// The CPU time that others took.
    pub disturbance: Disturbance,
    /// Number of migrations.
    pub migrations: u64,
    /// Counts of switches and steal.
    #[serde(flatten)]
    pub counts: ObservedCounts,
}

impl Measurement for Migration {
    fn disturbance(&self) -> Disturbance {
        self.disturbance
    }
}

/// Measures for a quarter of the duration that was asked for.
pub(super) fn measure(setup: &Setup<'_>) -> Result<Migration, Error> {
    let test = TestGuest::start(setup, setup.cpus)?;
    let log = SwitchLog::of_thread(test.tid, RING_PAGES)?;
    let before = Snapshot::take(&test.guest, test.tid, &log)?;
    let watch = Watch::start(setup.cpus.clone());
    let cpu_hog = setup.start_cpu_hog()?;
    let (began, mut migrations) = (Instant::now(), 0);
    while began.elapsed() < setup.duration() / 4 {
        for cpus in [setup.sampler_cpus, setup.vcpu_cpus] {
            pause(BETWEEN_MIGRATIONS)?;
            cpus.pin_thread(test.tid)?;
            migrations += 1;
        }
    }
    drop(cpu_hog);
    let disturbance = watch.disturbance();
    let after = Snapshot::take(&test.guest, test.tid, &log)?;
    let counts = ObservedCounts::between(&before, &after, log.lost());
    test.end()?;
    Ok(Migration { verdict: counts.verdict(disturbance), disturbance, migrations, counts })
}
