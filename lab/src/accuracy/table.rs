//! The tables of `vmm-lab accuracy`: a row for each publisher, a table for each measurement.

use std::fmt;

use super::{Accuracy, Migration, ObservedCounts, OracleReport, Row};
use crate::oracle::WrongTime;
use crate::results::statistics::ratio;
use crate::table::{TAKEN, Table, count, figure, fixed, percent};
use host::disturbance::Verdict;
use steal_time::publisher::Counts;

const ORACLE: [&str; 16] = [
    "publisher",
    "verdict",
    "taken",
    "preempted",
    "counted",
    "preempted missed",
    "unseen",
    "false",
    "set after p50/p99/p99.9/max us",
    "returned",
    "sched_in: all, healed, counted",
    "missed",
    "cleared after p50/p99/p99.9/max us",
    "wrongly set, longest ms",
    "wrongly clear, longest ms",
    "steal / lost",
];

const MIGRATION: [&str; 8] = [
    "publisher",
    "verdict",
    "taken",
    "migrations",
    "preempted",
    "counted",
    "sched_in: all, healed, counted",
    "steal / lost",
];

impl fmt::Display for Accuracy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = &self.host;
        writeln!(
            f,
            "A vCPU that spins, leaves the guest, halts and is woken; preempted fast and slowly, and descheduled; {} \
             (KVM on {}, Linux {})\n",
            host.processor, host.kvm_backend, host.kernel
        )?;
        let mut table = Table::new(&ORACLE, 2);
        for row in &self.rows {
            add_row(&mut table, row, row.oracle.as_ref().ok().map(|report| oracle_cells(row, report)));
        }
        writeln!(f, "By the kernel's records of each switch:\n{table}")?;
        let mut table = Table::new(&MIGRATION, 2);
        for row in &self.rows {
            let migration = row.migration.as_ref().ok();
            add_row(&mut table, row, migration.map(|migration| migration_cells(row, migration)));
        }
        writeln!(f, "While its thread migrates between CPUs:\n{table}")?;
        for row in &self.rows {
            remark(f, row)?;
        }
        write!(
            f,
            "Latencies run from the kernel's record of a switch to the changed byte, as another CPU sees it; negative: the \
             byte changed before the record.\nWrongly set and clear: percentage of the sampled time.\n{TAKEN}"
        )
    }
}

fn add_row<const N: usize>(table: &mut Table, row: &Row, cells: Option<[String; N]>) {
    match cells {
        Some(cells) => table.row(cells),
        None => table.row([row.publisher.to_string(), "-".to_owned()]),
    }
}

/// Prints why a row is empty or unknown, and the faults that were injected.
fn remark(f: &mut fmt::Formatter<'_>, row: &Row) -> fmt::Result {
    let publisher = row.publisher;
    let measurements = [
        ("oracle", row.oracle.as_ref().map(|report| (report.verdict, report.disturbance, &report.counts))),
        ("migration", row.migration.as_ref().map(|one| (one.verdict, one.disturbance, &one.counts))),
    ];
    for (name, measured) in measurements {
        match measured {
            Ok((verdict, disturbance, counts)) => {
                for inconsistency in &counts.inconsistencies {
                    writeln!(f, "{publisher}, {name}: unknown, because {inconsistency}")?;
                }
                if verdict != Verdict::Known && counts.inconsistencies.is_empty() {
                    writeln!(f, "{publisher}, {name}: {verdict}, because {disturbance}")?;
                }
            }
            Err(why) => writeln!(f, "{publisher}, {name}: not measured: {why}")?,
        }
    }
    if let Some(faults) = row.oracle.as_ref().ok().and_then(|report| report.counts.faults) {
        writeln!(f, "{publisher}: injected {faults:?}")?;
    }
    Ok(())
}

fn oracle_cells(row: &Row, report: &OracleReport) -> [String; 16] {
    let OracleReport { verdict, disturbance, preempted, counts, .. } = report;
    let microseconds = |ns: Option<i64>| ns.map_or("-".to_owned(), |ns| figure(ns as f64 / 1e3));
    let latencies = |ns: [Option<i64>; 4]| ns.map(microseconds).join(" / ");
    let wrong = |time: WrongTime| {
        let share = ratio(time.total_ns as f64, preempted.observed_ns as f64);
        format!("{} %, {:.3}", fixed(100.0 * share, 3), time.longest_ns as f64 / 1e6)
    };
    [
        row.publisher.to_string(),
        verdict.to_string(),
        percent(disturbance.share()),
        count(counts.sched_out),
        counted(counts),
        format!("{} of {}", preempted.sched_out.missed, preempted.sched_out.happened),
        count(preempted.sched_out.unobserved + preempted.sched_in.unobserved),
        count(preempted.falsely_set),
        latencies(report.out_latency_ns),
        count(preempted.sched_in.happened),
        sched_in(counts),
        count(preempted.sched_in.missed),
        latencies(report.in_latency_ns),
        wrong(preempted.wrongly_set),
        wrong(preempted.wrongly_clear),
        steal(counts),
    ]
}

fn migration_cells(row: &Row, migration: &Migration) -> [String; 8] {
    let Migration { verdict, disturbance, migrations, counts } = migration;
    [
        row.publisher.to_string(),
        verdict.to_string(),
        percent(disturbance.share()),
        count(*migrations),
        count(counts.sched_out),
        counted(counts),
        sched_in(counts),
        steal(counts),
    ]
}

fn counted(counts: &ObservedCounts) -> String {
    counts.counted.map_or_else(|| "-".to_owned(), |counted| count(counted.program.sched_out))
}

/// Switch-ins by perf; those that the host did not trace, and the program healed; those that the
/// publisher counted.
fn sched_in(counts: &ObservedCounts) -> String {
    let all = count(counts.sched_in);
    counts.counted.map_or_else(
        || format!("{all}, -, -"),
        |Counts { program, .. }| {
            format!("{all}, {}, {}", count(program.healed + program.unseen), count(program.timeslices()))
        },
    )
}

fn steal(counts: &ObservedCounts) -> String {
    fixed(ratio(counts.steal_ns as f64, counts.lost_ns as f64), 4)
}
