//! Renderings of one run: what is printed when it is over.

use std::fmt::{self, Display, Write as _};

use crate::results::{LockFigures, RunResult, WindowFigures};
use crate::table::{Table, count, figure};

/// What a run printed on its own is worth: a line on host and publisher, then what the payload's job gave.
pub struct Summary<'a>(pub &'a RunResult);

impl Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let result = self.0;
        writeln!(f, "{}", Headline(result))?;
        for limit in &result.publisher.limits {
            writeln!(f, "Publisher {}: {limit}", result.publisher.kind)?;
        }
        if let Some(window) = &result.window {
            if let Some(lock) = &window.lock {
                write!(f, "{}", lock_table(result, window, lock))?;
            }
            if let Some(byte) = &window.byte {
                writeln!(
                    f,
                    "Byte of another vCPU set in {:.2} % of {} samples, the own one in {} of {}",
                    100.0 * byte.other_share(),
                    figure(byte.other_samples as f64),
                    byte.own_set,
                    figure(byte.own_samples as f64),
                )?;
            }
            if window.host.disturbed {
                writeln!(f, "{}", Disturbed(window))?;
            }
        }
        if let Some(why) = result.outcome.ended_early() {
            writeln!(f, "Ended early ({why}): figures are those of the time until then")?;
        }
        for finding in &result.findings {
            let verdict = match finding.broken_at {
                None => format!("held {}", count(finding.held)),
                Some(line) => format!("BROKEN (payload, line {line})"),
            };
            writeln!(f, "{:>2} {:<24} {verdict}", finding.number, finding.assertion)?;
        }
        Ok(())
    }
}

/// Where, what, by whom, how long.
pub struct Headline<'a>(pub &'a RunResult);

impl Display for Headline<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RunResult { host, guest, publisher, .. } = self.0;
        write!(
            f,
            "{} vCPU{} on CPUs {} of {} (KVM on {}, Linux {}), publisher {} ({})",
            guest.vcpus,
            if guest.vcpus == 1 { "" } else { "s" },
            guest.cpus,
            host.processor,
            host.kvm_backend,
            host.kernel,
            publisher.kind,
            publisher.why,
        )?;
        match &self.0.window {
            Some(window) => write!(f, ", {} s", figure(window.length_ns as f64 / 1e9)),
            None => Ok(()),
        }
    }
}

/// That a point should not be believed, and why.
struct Disturbed<'a>(&'a WindowFigures);

impl Display for Disturbed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = &self.0.host;
        write!(
            f,
            "Disturbed: other processes used {:.2} CPUs, and an outer hypervisor took {:.2}",
            host.other_tasks_cpus, host.stolen_cpus
        )
    }
}

fn lock_table(result: &RunResult, window: &WindowFigures, lock: &LockFigures) -> Table {
    let mut table = Table::new(&LOCK_COLUMNS, 2);
    let name = result.workload.map(|w| [w.lock.to_string(), w.wait.to_string()]).unwrap_or_default();
    table.row(name.into_iter().chain(lock_cells(window, lock)));
    table
}

/// Heads of the columns of [`lock_cells`], after lock and wait.
pub const LOCK_COLUMNS: [&str; 10] = [
    "lock",
    "wait",
    "acq/s",
    "p50 us",
    "p99 us",
    "longest ms",
    "steal s",
    "preempted/s",
    "byte seen/s",
    "halts/s",
];

/// What a lock gave in a window.
pub fn lock_cells(window: &WindowFigures, lock: &LockFigures) -> [String; 8] {
    let seconds = window.length_ns as f64 / 1e9;
    let a_second = |count: u64| figure(count as f64 / seconds.max(f64::MIN_POSITIVE));
    [
        figure(lock.per_second),
        figure(lock.waits.p50_ns as f64 / 1e3),
        figure(lock.waits.p99_ns as f64 / 1e3),
        figure(lock.waits.longest_ns as f64 / 1e6),
        figure(window.guest_steal_ns as f64 / 1e9),
        a_second(window.host.preemptions),
        a_second(lock.preempted_seen),
        a_second(lock.halts),
    ]
}

/// Where the time went, a mark a line.
pub fn timings(result: &RunResult) -> String {
    let mut text = String::new();
    let mut before = 0.0;
    for mark in &result.timings {
        let at = mark.at.as_secs_f64() * 1e6;
        let _ = writeln!(text, "{at:>10.0} us  (+{:>8.0})  {}", at - before, mark.what);
        before = at;
    }
    text
}
