//! Renderings of one run, printed at its end.

use std::fmt::{self, Display, Write as _};

use crate::results::{LockFigures, RunResult, Times, WindowFigures, statistics};
use crate::table::{Table, count, figure, fixed};
use host::disturbance::Verdict;
use host::facts::HostFacts;

/// Summary of a run: a line about host and publisher, then the figures of the payload's job.
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
            if let Some(preempted) = &window.preempted {
                writeln!(
                    f,
                    "Preempted of another vCPU set in {} % of {} samples, own in {} of {}",
                    fixed(100.0 * preempted.other_share(), 2),
                    figure(preempted.other_samples as f64),
                    preempted.own_set,
                    figure(preempted.own_samples as f64),
                )?;
            }
            match window.host.disturbance.verdict() {
                Verdict::Known => {}
                verdict => writeln!(f, "The figures are {verdict}: {}", window.host.disturbance)?,
            }
        }
        if let Some(why) = result.outcome.kind.ended_early() {
            writeln!(f, "Ended early ({why}): the figures cover the time until then")?;
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

/// The host in short: processor, backend of KVM, kernel.
pub struct HostLine<'a>(pub &'a HostFacts);

impl Display for HostLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let HostFacts { processor, kvm_backend, kernel, .. } = self.0;
        write!(f, "{processor} (KVM on {kvm_backend}, Linux {kernel})")
    }
}

/// One line: the guest, the host, the publisher, the length of the window.
pub struct Headline<'a>(pub &'a RunResult);

impl Display for Headline<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RunResult { host, guest, publisher, .. } = self.0;
        write!(
            f,
            "{} vCPU{} on CPUs {} of {}, publisher {} ({})",
            guest.vcpus,
            if guest.vcpus == 1 { "" } else { "s" },
            guest.cpus,
            HostLine(host),
            publisher.kind,
            publisher.why,
        )?;
        match &self.0.window {
            Some(window) => write!(f, ", {} s", figure(window.length_ns as f64 / 1e9)),
            None => Ok(()),
        }
    }
}

fn lock_table(result: &RunResult, window: &WindowFigures, lock: &LockFigures) -> Table {
    let header = [
        "lock",
        "wait",
        "acq/s",
        "p50 us",
        "p99 us",
        "longest ms",
        "steal s",
        "preempted/s",
        "seen/s",
        "halts/s",
    ];
    let mut table = Table::new(&header, 2);
    let name = result.workload.map(|w| [w.lock.to_string(), w.wait.to_string()]).unwrap_or_default();
    let waits = |pick: fn(&Times) -> u64| lock.waits.quantile_ns(pick);
    table.row(name.into_iter().chain([
        figure(lock.per_second),
        figure(waits(|waits| waits.p50_ns) / 1e3),
        figure(waits(|waits| waits.p99_ns) / 1e3),
        figure(waits(|waits| waits.longest_ns) / 1e6),
        figure(window.guest_steal_ns as f64 / 1e9),
        window.host.preemptions.map_or_else(|| "-".to_owned(), |count| per_second(window, count)),
        per_second(window, lock.preempted_seen),
        per_second(window, lock.halts),
    ]));
    table
}

/// Formats `count` per second of `window`.
pub fn per_second(window: &WindowFigures, count: u64) -> String {
    figure(statistics::per_second(count, window.length_ns))
}

/// The milestones of the run, one per line, in us.
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
