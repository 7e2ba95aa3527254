//! The text of `perf sched script`, `perf script` or ftrace: one line for each context switch.

use std::collections::BTreeMap;

use super::threads::Threads;
use super::{Line, TracedSlice, decimal};
use crate::policy::{Cpu, Ns, Vcpu};

/// The event that each line of a switch names.
pub(super) const EVENT: &str = "sched_switch:";

/// Parses the lines of [`EVENT`] in `text`. A slice lasts from one to the next of its CPU.
///
/// # Errors
/// The first line that cannot be parsed.
pub(super) fn slices(text: &str, threads: &mut Threads<'_>) -> Result<Vec<Line>, String> {
    let mut slices = Vec::new();
    // The current slice of each CPU: its start and its vCPU.
    let mut open: BTreeMap<Cpu, (Ns, Option<Vcpu>)> = BTreeMap::new();
    for (number, line) in (1..).zip(text.lines()) {
        let Some((head, tail)) = line.split_once(EVENT) else { continue };
        let bad = || format!("line {number} is not a sched_switch of ftrace or perf: {:?}", line.trim());
        let at = timestamp(head).ok_or_else(bad)?;
        let cpu = bracketed(head).ok_or_else(bad)?;
        let (_, next) = tail.split_once("==>").ok_or_else(bad)?;
        let (name, tid) = thread(next.trim()).ok_or_else(bad)?;
        let cpu = threads.cpu(cpu);
        let vcpu = threads.vcpu(name, tid);
        if let Some((since, vcpu)) = open.insert(cpu, (at, vcpu)) {
            let slice = TracedSlice { at: since, cpu, vcpu, length: at.saturating_sub(since) };
            slices.push(Line { number, slice });
        }
    }
    Ok(slices)
}

/// Parses the timestamp before the event name, in seconds, to ns.
fn timestamp(head: &str) -> Option<Ns> {
    let word = head.split_whitespace().rev().find(|word| word.ends_with(':') && word.contains('.'))?;
    decimal(word.trim_end_matches(':'), 9)
}

/// Parses the CPU number in brackets.
fn bracketed(head: &str) -> Option<u64> {
    let digits = |word: &str| word.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    head.split_whitespace().find_map(digits)
}

/// Name and TID of the next thread: `next_comm=CPU 0/KVM next_pid=7 ...`, or `CPU 0/KVM:7 [120]`.
fn thread(next: &str) -> Option<(&str, u64)> {
    if let Some(rest) = next.strip_prefix("next_comm=") {
        let (name, rest) = rest.split_once(" next_pid=")?;
        return Some((name, rest.split_whitespace().next()?.parse().ok()?));
    }
    let (thread, _) = next.rsplit_once('[').unwrap_or((next, ""));
    let (name, number) = thread.trim().rsplit_once(':')?;
    Some((name, number.parse().ok()?))
}
