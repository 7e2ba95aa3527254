//! The text of `perf sched timehist`: one row for each slice, printed when it ends.
//!
//! ```text
//!            time    cpu  task name                       wait time  sch delay   run time
//!                         [tid/pid]                          (msec)     (msec)     (msec)
//! --------------- ------  ------------------------------  ---------  ---------  ---------
//!    13979.744601 [0000]  CPU 0/KVM[25438/25433]              0.000      0.000      4.248
//! ```
//!
//! Options add columns: `-V` a picture of the CPUs before the name, `--show-prio` a priority behind
//! it, `--state` and `-n` text at the end. `-w` and `-M` add rows of wakeups and migrations, `-I`
//! of idle CPUs.
//!
//! Source: Linux `tools/perf/builtin-sched.c`, `timehist_header` and `timehist_print_sample`.

use super::threads::Threads;
use super::{Line, TracedSlice, decimal};
use crate::policy::Ns;

/// The part of a row before the name.
struct Row<'t> {
    ended: Ns,
    cpu: u64,
    /// What follows the CPU.
    rest: &'t str,
}

impl<'t> Row<'t> {
    /// Splits `line`; `None` if it is no row.
    fn of(line: &'t str) -> Option<Self> {
        let (time, rest) = line.trim_start().split_once(' ')?;
        let (cpu, rest) = rest.trim_start().strip_prefix('[')?.split_once(']')?;
        time.contains('.').then_some(())?;
        Some(Self { ended: decimal(time, 9)?, cpu: cpu.parse().ok()?, rest })
    }
}

/// Whether `text` is from `perf sched timehist`: it has its header, or a row.
pub(super) fn is_in(text: &str) -> bool {
    text.lines().any(|line| name_column(line).is_some() || Row::of(line).is_some())
}

/// Returns the number of bytes between the columns of CPU and name, if `line` is the header.
fn name_column(line: &str) -> Option<usize> {
    let (cpu, name) = (line.find(" cpu ")? + " cpu".len(), line.find("task name")?);
    line.contains("run time").then_some(())?;
    name.checked_sub(cpu)
}

/// Parses the rows of `text`.
///
/// # Errors
/// The first row that cannot be parsed.
pub(super) fn slices(text: &str, threads: &mut Threads<'_>) -> Result<Vec<Line>, String> {
    let (mut slices, mut column) = (Vec::new(), 0);
    for (number, line) in (1..).zip(text.lines()) {
        column = name_column(line).unwrap_or(column);
        let Some(row) = Row::of(line) else { continue };
        let bad = || format!("line {number} is not a row of perf sched timehist: {:?}", line.trim());
        // Without a header there is no picture of the CPUs either.
        let rest = row.rest.get(column..).unwrap_or(row.rest);
        if rest.trim_start().starts_with("<idle>") {
            continue;
        }
        let (name, tid, rest) = thread(rest).ok_or_else(bad)?;
        let Some(length) = run_time(rest).map_err(|()| bad())? else { continue };
        let at = row.ended.checked_sub(length).ok_or_else(bad)?;
        let cpu = threads.cpu(row.cpu);
        let vcpu = threads.vcpu(name, tid);
        // A thread that ran before the trace began has no run time.
        if vcpu.is_some() && length > 0 {
            slices.push(Line { number, slice: TracedSlice { at, cpu, vcpu, length } });
        }
    }
    Ok(slices)
}

/// Splits `CPU 0/KVM[25438/25433]  0.000` into name, thread ID and the rest. A name may contain
/// brackets, too.
fn thread(text: &str) -> Option<(&str, u64, &str)> {
    text.match_indices('[').find_map(|(open, _)| {
        let (ids, rest) = text.get(open + 1..)?.split_once(']')?;
        let (tid, pid) = ids.split_once('/').unwrap_or((ids, "0"));
        // perf prints -1 for a thread that it does not know.
        let (tid, _) = (tid.parse::<i64>().ok()?, pid.parse::<i64>().ok()?);
        (rest.is_empty() || rest.starts_with(' '))
            .then(|| (text[..open].trim(), u64::try_from(tid).unwrap_or(u64::MAX), rest))
    })
}

/// Returns the run time (ns): the third number behind the name. `None` in rows of wakeups and
/// migrations.
fn run_time(columns: &str) -> Result<Option<Ns>, ()> {
    let mut words = columns.split_whitespace().peekable();
    if words.peek().is_some_and(|word| ["awakened:", "migrated:"].contains(word)) {
        return Ok(None);
    }
    // A priority has no point: 120, or 120->110.
    let run = words.filter(|word| word.contains('.')).nth(2).ok_or(())?;
    decimal(run, 6).map(Some).ok_or(())
}

#[cfg(test)]
mod tests {
    use super::super::threads::{ThreadPattern, VCPU_NAMES};
    use super::*;

    fn parsed(text: &str) -> Result<Vec<(usize, TracedSlice)>, String> {
        let pattern = ThreadPattern::new(VCPU_NAMES).unwrap();
        let mut threads = Threads::new(&pattern);
        let slices = slices(text, &mut threads)?;
        Ok(slices.into_iter().map(|line| (line.number, line.slice)).collect())
    }

    fn slice(at: Ns, cpu: usize, vcpu: usize, length: Ns) -> TracedSlice {
        TracedSlice { at, cpu, vcpu: Some(vcpu), length }
    }

    /// Printed by `perf sched timehist -w -V -n -M --state -I` of Linux 6.1, shortened.
    const ALL_OPTIONS: &str = "\
Samples do not have callchains.
           time    cpu  01   task name                       wait time  sch delay   run time  state
                             [tid/pid]                          (msec)     (msec)     (msec)
--------------- ------  --   ------------------------------  ---------  ---------  ---------  -----
   13979.740332 [0000]       perf[25656]                                                             awakened: CPU 0/KVM[18/10]
   13979.740338 [0000]  s    perf[25656]                         0.000      0.000      0.000      S  next: CPU 0/KVM[18]
   13979.741000 [0001]  m    perf[25656]                                                             migrated: CPU 1/KVM[19/10] cpu 0 => 1
   13979.744586 [0000]  s    CPU 0/KVM[18/10]                    0.000      0.005      4.248      R  next: rustc[25438]
   13979.744590 [0001]   i   <idle>                              1.000      0.000      2.000      I
   13979.745090 [0001]   s   CPU 1/KVM[19/10]                    0.500      0.250      0.500      S  next: swapper[0]
   13979.745445 [0000]  s    :-1[-1/25597]                       0.000      0.000      0.528      R
";

    #[test]
    fn run_time_and_its_end_are_the_slice_with_every_option() {
        let begin = 13_979_740_338_000;
        let expected = [(8, slice(begin, 0, 0, 4_248_000)), (10, slice(13_979_744_590_000, 1, 1, 500_000))];
        assert_eq!(parsed(ALL_OPTIONS).unwrap(), expected);
        assert!(is_in(ALL_OPTIONS));
    }

    #[test]
    fn rows_without_a_header_and_with_a_priority_are_parsed() {
        let rows = "  7.500250 [0003]  vcpu1[40]   120       0.000  0.000  0.250\n\
                    7.500750 [003]  fc_vcpu 0[41/40]  120->110  0.000  0.000  0.500 \n";
        assert!(is_in(rows));
        assert_eq!(
            parsed(rows).unwrap(),
            [(1, slice(7_500_000_000, 0, 0, 250_000)), (2, slice(7_500_250_000, 0, 1, 500_000))]
        );
        assert_eq!(thread("a[b] [c][7/6]  1"), Some(("a[b] [c]", 7, "  1")));
    }

    #[test]
    fn row_that_cannot_be_parsed_is_refused_with_its_line() {
        for row in [
            "1.0 [0] vcpu0",
            "1.0 [0] vcpu0[1]",
            "1.0 [0] vcpu0[1] 0.000 0.000",
            "1.0 [0] vcpu0[1] 0.000 0.000 2000.000",
            "1.0 [0] vcpu0[1] 0.000 0.000 0.0000001",
            "1.0 [0] vcpu0[1] 0.000 0.000 99999999999999999999.0",
        ] {
            let refused = parsed(&format!("\n{row}")).unwrap_err();
            assert!(refused.starts_with("line 2 is not a row of perf sched timehist"), "{row}: {refused}");
        }
        assert!(!is_in("at_ns,cpu,vcpu,length_ns\n0,0,0,5\n"));
    }
}
