//! Trace files: recorded schedules of vCPUs, as text.
//!
//! - CSV: one line for each slice, `at_ns,cpu,vcpu,length_ns`, with `-` as the vCPU of an idle
//!   slice.
//! - The output of `perf sched script` or ftrace. Only `sched_switch` lines of vCPU threads count:
//!   those named `CPU 0/KVM`, `vcpu0` or `fc_vcpu 0`. CPUs and vCPUs are numbered in the order of
//!   their first appearance.

use std::collections::BTreeMap;

use super::{Cpu, Ns, Vcpu};

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

/// Parses a trace. Returns its slices ordered by start; the first starts at 0.
///
/// # Errors
/// The first line that cannot be parsed, or that the trace has no slice of a vCPU.
pub fn parse(text: &str) -> Result<Vec<TracedSlice>, String> {
    let mut slices = if text.contains("sched_switch:") { sched_switches(text)? } else { csv(text)? };
    if slices.is_empty() {
        return Err("no slice of a vCPU in it".to_owned());
    }
    slices.sort_by_key(|slice| slice.at);
    let begin = slices.iter().map(|slice| slice.at).min().unwrap_or(0);
    for slice in &mut slices {
        slice.at -= begin;
    }
    Ok(slices)
}

/// Parses CSV.
fn csv(text: &str) -> Result<Vec<TracedSlice>, String> {
    let mut slices = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') || line.starts_with("at_ns") {
            continue;
        }
        let bad = || format!("line {number} is not at_ns,cpu,vcpu,length_ns: {line:?}");
        let cells: Vec<_> = line.split(',').map(str::trim).collect();
        let [at, cpu, vcpu, length] = cells[..] else { return Err(bad()) };
        let vcpu = if vcpu == "-" { None } else { Some(vcpu.parse().map_err(|_| bad())?) };
        let number = |cell: &str| cell.parse::<u64>().map_err(|_| bad());
        slices.push(TracedSlice {
            at: number(at)?,
            cpu: cpu.parse().map_err(|_| bad())?,
            vcpu,
            length: number(length)?,
        });
    }
    Ok(slices)
}

/// Assigns consecutive indices to names, in the order of their first use.
#[derive(Default)]
struct Numbers(BTreeMap<u64, usize>);

impl Numbers {
    fn of(&mut self, name: u64) -> usize {
        let next = self.0.len();
        *self.0.entry(name).or_insert(next)
    }
}

/// Parses the `sched_switch` lines of ftrace or perf.
fn sched_switches(text: &str) -> Result<Vec<TracedSlice>, String> {
    let (mut cpus, mut vcpus) = (Numbers::default(), Numbers::default());
    let mut slices = Vec::new();
    // The current slice of each CPU: its start and its vCPU.
    let mut open: BTreeMap<Cpu, (Ns, Option<Vcpu>)> = BTreeMap::new();
    for (number, line) in (1..).zip(text.lines()) {
        let Some((head, tail)) = line.split_once("sched_switch:") else { continue };
        let bad = || format!("line {number} is not a sched_switch of ftrace or perf: {:?}", line.trim());
        let at = timestamp(head).ok_or_else(bad)?;
        let cpu = bracketed(head).ok_or_else(bad)?;
        let (_, next) = tail.split_once("==>").ok_or_else(bad)?;
        let (name, thread) = thread(next.trim()).ok_or_else(bad)?;
        let cpu = cpus.of(cpu);
        let vcpu = is_vcpu(name).then(|| vcpus.of(thread));
        if let Some((since, vcpu)) = open.insert(cpu, (at, vcpu)) {
            slices.push(TracedSlice { at: since, cpu, vcpu, length: at.saturating_sub(since) });
        }
    }
    if vcpus.0.is_empty() {
        return Ok(Vec::new());
    }
    Ok(slices)
}

/// Parses the timestamp before the event name, in seconds, to ns.
fn timestamp(head: &str) -> Option<Ns> {
    let word = head.split_whitespace().rev().find(|word| word.ends_with(':') && word.contains('.'))?;
    let (seconds, fraction) = word.trim_end_matches(':').split_once('.')?;
    let digits = u32::try_from(fraction.len()).ok().filter(|digits| *digits <= 9)?;
    let fraction = fraction.parse::<u64>().ok()? * 10_u64.pow(9 - digits);
    seconds.parse::<u64>().ok()?.checked_mul(1_000_000_000)?.checked_add(fraction)
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

/// Whether QEMU, cloud-hypervisor or Firecracker names vCPU threads like this.
fn is_vcpu(name: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let qemu = name.strip_prefix("CPU ").and_then(|rest| rest.strip_suffix("/KVM"));
    qemu.or(name.strip_prefix("vcpu")).or(name.strip_prefix("fc_vcpu ")).is_some_and(is_number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FTRACE: &str = "\
# tracer: nop
          <idle>-0       [001] d..2.   100.000000: sched_switch: prev_comm=swapper/1 prev_pid=0 prev_prio=120 prev_state=R ==> next_comm=CPU 0/KVM next_pid=71 next_prio=120
       CPU 0/KVM-71      [001] d..2.   100.003000: sched_switch: prev_comm=CPU 0/KVM prev_pid=71 prev_prio=120 prev_state=R ==> next_comm=make next_pid=9 next_prio=120
            make-9       [001] d..2.   100.004500: sched_switch: prev_comm=make prev_pid=9 prev_prio=120 prev_state=S ==> next_comm=CPU 1/KVM next_pid=72 next_prio=120
       CPU 1/KVM-72      [001] d..2.   100.005000: sched_switch: prev_comm=CPU 1/KVM prev_pid=72 prev_prio=120 prev_state=S ==> next_comm=swapper/1 next_pid=0 next_prio=120
";

    const PERF: &str = "\
 swapper     0 [003]  7.500000000: sched:sched_switch: swapper/3:0 [120] R ==> vcpu1:40 [120]
 vcpu1      40 [003]  7.500250000: sched:sched_switch: vcpu1:40 [120] R ==> vcpu0:41 [120]
 vcpu0      41 [003]  7.500750000: sched:sched_switch: vcpu0:41 [120] S ==> swapper/3:0 [120]
";

    fn slice(at: Ns, cpu: Cpu, vcpu: Option<Vcpu>, length: Ns) -> TracedSlice {
        TracedSlice { at, cpu, vcpu, length }
    }

    #[test]
    fn slices_are_parsed_from_csv_ftrace_and_perf() {
        let csv = "at_ns,cpu,vcpu,length_ns\n# one idles\n500,0,1,100\n600,0,-,50\n";
        assert_eq!(parse(csv).unwrap(), [slice(0, 0, Some(1), 100), slice(100, 0, None, 50)]);
        let us = |us: Ns| us * 1_000;
        let ftrace = [
            slice(0, 0, Some(0), us(3_000)),
            slice(us(3_000), 0, None, us(1_500)),
            slice(us(4_500), 0, Some(1), us(500)),
        ];
        assert_eq!(parse(FTRACE).unwrap(), ftrace);
        assert_eq!(
            parse(PERF).unwrap(),
            [slice(0, 0, Some(0), us(250)), slice(us(250), 0, Some(1), us(500))]
        );
    }

    #[test]
    fn invalid_trace_is_refused_with_its_line() {
        assert_eq!(parse("1,0,0,5\n1,0,0").unwrap_err(), "line 2 is not at_ns,cpu,vcpu,length_ns: \"1,0,0\"");
        assert!(parse("1,0,-1,5").unwrap_err().starts_with("line 1"));
        assert!(parse("").is_err());
        assert!(parse("sched_switch: nonsense").unwrap_err().starts_with("line 1"));
        assert!(parse("x [0] 1.0: sched_switch: a:1 [120] R ==> make:9 [120]").is_err(), "no vCPU in it");
        for broken in [
            "\u{0}",
            "sched_switch:==>",
            "[] 1.: sched_switch: ==> next_comm=",
            "[9] 1.9999999999: sched_switch: ==> a:1",
        ] {
            assert!(parse(broken).is_err(), "{broken:?}");
        }
    }
}
