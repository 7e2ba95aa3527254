//! Trace files: recorded schedules of vCPUs, as text.
//!
//! - CSV: one line for each slice, `at_ns,cpu,vcpu,length_ns`, with `-` as the vCPU of an idle
//!   slice.
//! - The output of `perf sched script` or ftrace. Only its `sched_switch` lines count.
//! - The output of `perf sched timehist`.
//!
//! Only vCPU threads count, which a [`ThreadPattern`] selects. CPUs are numbered in the order of
//! their first appearance. vCPUs have the numbers in their threads' names, or are numbered
//! likewise.

mod switches;
mod threads;
mod timehist;

use self::threads::Threads;
pub use self::threads::{ThreadPattern, VCPU_NAMES};
use super::{Cpu, Ns, Vcpu};

/// Maximum size of a trace file (bytes): half a million switches of `perf sched script`, at 120
/// bytes each. Its slices then take 30 MiB.
pub const MAX_SIZE: u64 = 64 << 20;

/// Maximum length of a trace (ns): a day. No sum of times overflows then, repeated and stretched.
pub const MAX_LENGTH: Ns = 86_400_000_000_000;

/// A slice of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TracedSlice {
    /// Start, relative to the start of the trace (ns).
    pub at: Ns,
    /// The CPU.
    pub cpu: Cpu,
    /// The vCPU; `None` for an idle slice.
    pub vcpu: Option<Vcpu>,
    /// Length (ns).
    pub length: Ns,
}

/// A slice, and the line of the file that it ends in.
#[derive(Clone, Copy, Debug)]
struct Line {
    number: usize,
    slice: TracedSlice,
}

/// Parses a trace, whose vCPU threads `pattern` selects. Returns its slices ordered by start; the
/// first starts at 0.
///
/// # Errors
/// The first line that cannot be parsed or lies outside the length of a trace, or that the trace
/// has no slice of a vCPU.
pub fn parse(text: &str, pattern: &ThreadPattern) -> Result<Vec<TracedSlice>, String> {
    let mut threads = Threads::new(pattern);
    let lines = if text.contains(switches::EVENT) {
        switches::slices(text, &mut threads)?
    } else if timehist::is_in(text) {
        timehist::slices(text, &mut threads)?
    } else {
        return from_begin(csv(text)?);
    };
    let numbers = threads.numbers();
    if numbers.is_empty() {
        return Err(threads.none_is_a_vcpu());
    }
    from_begin(
        lines
            .into_iter()
            .map(|Line { number, slice }| {
                let vcpu = slice.vcpu.and_then(|order| numbers.get(order).copied());
                Line { number, slice: TracedSlice { vcpu, ..slice } }
            })
            .collect(),
    )
}

/// Orders slices, and makes their times relative to the first.
fn from_begin(mut lines: Vec<Line>) -> Result<Vec<TracedSlice>, String> {
    lines.sort_by_key(|line| line.slice.at);
    let begin = lines.first().ok_or("no slice of a vCPU in it")?.slice.at;
    let relative = lines.into_iter().map(|Line { number, slice }| {
        let at = slice.at - begin;
        let end = at.checked_add(slice.length).filter(|end| *end <= MAX_LENGTH);
        end.map(|_| TracedSlice { at, ..slice }).ok_or_else(|| {
            format!("the slice of line {number} ends more than a day after the first begins (cut the trace)")
        })
    });
    relative.collect()
}

/// Parses CSV.
fn csv(text: &str) -> Result<Vec<Line>, String> {
    let mut lines = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') || line.starts_with("at_ns") {
            continue;
        }
        let bad = || {
            let start: String = line.chars().take(80).collect();
            format!("line {number} is not at_ns,cpu,vcpu,length_ns: {start:?}")
        };
        let cells: Vec<_> = line.split(',').map(str::trim).collect();
        let [at, cpu, vcpu, length] = cells[..] else { return Err(bad()) };
        let vcpu = if vcpu == "-" { None } else { Some(vcpu.parse().map_err(|_| bad())?) };
        let time = |cell: &str| cell.parse::<u64>().map_err(|_| bad());
        let cpu = cpu.parse().map_err(|_| bad())?;
        let slice = TracedSlice { at: time(at)?, cpu, vcpu, length: time(length)? };
        lines.push(Line { number, slice });
    }
    Ok(lines)
}

/// Parses a decimal number with a fraction to units of 10^-`digits`: seconds to ns by 9.
fn decimal(text: &str, digits: u32) -> Option<u64> {
    let (whole, fraction) = text.split_once('.')?;
    let scale = digits.checked_sub(u32::try_from(fraction.len()).ok()?)?;
    let fraction = fraction.parse::<u64>().ok()?.checked_mul(10_u64.pow(scale))?;
    whole.parse::<u64>().ok()?.checked_mul(10_u64.pow(digits))?.checked_add(fraction)
}

#[cfg(test)]
mod tests;
