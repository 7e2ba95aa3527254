//! Migration: the vCPU's thread is moved from CPU to CPU, all the time.
//!
//! Nobody looks at the byte meanwhile: on a host of two CPUs there is none left to look from. What can be said is whether
//! whoever publishes has seen each switch, and told what was lost.

use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::end::{End, Tally};
use super::error::AccuracyError;
use super::subject::Subject;
use super::{RING_PAGES, Setting};
use host::perf::SwitchLog;

/// Between two moves.
const BETWEEN_MOVES: Duration = Duration::from_micros(700);

/// What was counted of a vCPU that was moved about.
#[derive(Debug, Serialize)]
pub struct Moves {
    /// Moves.
    pub moves: u64,
    /// All counts.
    #[serde(flatten)]
    pub tally: Tally,
}

pub(super) fn measure(setting: &Setting<'_>) -> Result<Moves, AccuracyError> {
    let subject = Subject::start(setting, 1, setting.cpus)?;
    let log = SwitchLog::of_thread(subject.tid, RING_PAGES)?;
    let before = End::take(&subject.guest, subject.tid, &log)?;
    let cpu_hog = setting.start_hog()?;
    let (began, mut moves) = (Instant::now(), 0);
    while began.elapsed() < setting.length() / 4 {
        for cpus in [setting.looker_cpus, setting.vcpu_cpus] {
            thread::sleep(BETWEEN_MOVES);
            cpus.pin_thread(subject.tid)?;
            moves += 1;
        }
    }
    drop(cpu_hog);
    let after = End::take(&subject.guest, subject.tid, &log)?;
    let tally = Tally::between(&before, &after, log.lost());
    subject.end()?;
    Ok(Moves { moves, tally })
}
