//! Points: what varies between the guests of an experiment.

use std::fmt::{self, Display};

use protocol::payload::params::{Check, Job, Lock, Wait, Workload};
use serde::{Serialize, Serializer};

use crate::results::as_word;
use steal_time::publisher::PublisherKind;

/// A way of waiting, and how often it checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WaitMode {
    /// The way of waiting.
    pub wait: Wait,
    /// Turns of the waiting loop per check.
    pub every: u32,
}

impl WaitMode {
    /// A way of waiting that checks in each turn.
    pub const fn new(wait: Wait) -> Self {
        Self { wait, every: 1 }
    }

    /// `workload`, waiting this way.
    pub fn apply_to(self, workload: Workload) -> Workload {
        Workload { wait: self.wait, check_every: self.every, ..workload }
    }
}

impl Display for WaitMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.every {
            1 => write!(f, "{}", self.wait),
            every => write!(f, "{}/{every}", self.wait),
        }
    }
}

impl Serialize for WaitMode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One guest that contends for a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Point {
    /// The lock.
    #[serde(serialize_with = "as_word")]
    pub lock: Lock,
    /// How its waiters wait.
    pub wait: WaitMode,
    /// The form of the check that waiters use.
    #[serde(serialize_with = "as_word")]
    pub check: Check,
    /// The publisher of the steal-time records.
    pub publisher: PublisherKind,
    /// vCPUs per CPU.
    pub overcommit: usize,
}

impl Point {
    /// `workload` as this point runs it.
    pub(super) fn apply_to(self, workload: Workload) -> Workload {
        let Self { lock, check, .. } = self;
        self.wait.apply_to(Workload { job: Job::Contend, lock, check, ..workload })
    }
}

impl Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lock, wait, check, publisher, overcommit } = self;
        write!(f, "{lock}, wait {wait}, {overcommit}x, {check}, {publisher}")
    }
}
