//! The tables: a publisher a row, a table for each view.

use std::fmt;

use super::{Accuracy, Finding, Moves, Row, Tally};
use crate::table::{Table, count, figure};
use steal_time::publisher::Counts;

const HOST: [&str; 15] = [
    "publisher",
    "verdict",
    "preempted",
    "counted",
    "byte missed",
    "unseen",
    "false",
    "out p50/p99/p99.9/max us",
    "back",
    "ins: all, healed, counted",
    "missed",
    "in p50/p99/p99.9/max us",
    "wrongly set, longest ms",
    "wrongly clear, longest ms",
    "steal / lost",
];

const MOVED: [&str; 7] =
    ["publisher", "verdict", "moves", "preempted", "counted", "ins: all, healed, counted", "steal / lost"];

impl fmt::Display for Accuracy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = &self.host;
        writeln!(
            f,
            "A vCPU that spins, leaves the guest, halts and is woken; preempted fast and slowly, and held; {} (KVM on {}, \
             Linux {})\n",
            host.processor, host.kvm_backend, host.kernel
        )?;
        let mut table = Table::new(&HOST, 2);
        for row in &self.rows {
            table_row(&mut table, row, row.finding.as_ref().ok().map(|finding| of_host(row, finding)));
        }
        writeln!(f, "As the host's oracle sees it, by the kernel's records of each switch:\n{table}")?;
        let mut table = Table::new(&MOVED, 2);
        for row in &self.rows {
            table_row(&mut table, row, row.moves.as_ref().ok().map(|moves| of_moves(row, moves)));
        }
        writeln!(f, "While its thread is moved from CPU to CPU:\n{table}")?;
        for row in &self.rows {
            remark(f, row)?;
        }
        writeln!(
            f,
            "Latencies are from the kernel's own record of a switch to the byte seen changed on another CPU; less than 0 is before \
             it. Wrong: share of the time looked at."
        )
    }
}

fn table_row<const N: usize>(table: &mut Table, row: &Row, cells: Option<[String; N]>) {
    match cells {
        Some(cells) => table.row(cells),
        None => table.row([row.publisher.to_string(), "-".to_owned()]),
    }
}

/// What the tables have no room for.
fn remark(f: &mut fmt::Formatter<'_>, row: &Row) -> fmt::Result {
    let publisher = row.publisher;
    let doubts = |tally: &Tally| tally.doubts.clone();
    let views = [
        ("the host's view", row.finding.as_ref().map(|finding| doubts(&finding.tally))),
        ("moved about", row.moves.as_ref().map(|moves| doubts(&moves.tally))),
    ];
    for (name, view) in views {
        match view {
            Ok(doubts) => {
                for doubt in doubts {
                    writeln!(f, "{publisher}, {name}: unknown, since {doubt}")?;
                }
            }
            Err(why) => writeln!(f, "{publisher}, {name}: not measured: {why}")?,
        }
    }
    if let Some(faults) = row.finding.as_ref().ok().and_then(Finding::faults) {
        writeln!(f, "{publisher}: of its own faults it counts {faults:?}")?;
    }
    Ok(())
}

fn of_host(row: &Row, finding: &Finding) -> [String; 15] {
    let Finding { byte, tally, .. } = finding;
    let microseconds = |ns: Option<i64>| ns.map_or("-".to_owned(), |ns| figure(ns as f64 / 1e3));
    let latencies = |ns: [Option<i64>; 4]| ns.map(microseconds).join(" / ");
    let wrong = |direction: crate::oracle::WrongTime| {
        let share = direction.total_ns as f64 / byte.observed_ns.max(1) as f64;
        stretches(share, direction.longest_ns)
    };
    [
        row.publisher.to_string(),
        verdict(tally.doubts.is_empty()),
        count(tally.outs),
        counted(tally),
        format!("{} of {}", byte.sched_out.missed, byte.sched_out.happened),
        count(byte.sched_out.unobserved + byte.sched_in.unobserved),
        count(byte.falsely_set),
        latencies(finding.out_latency_ns),
        count(byte.sched_in.happened),
        ins(tally),
        count(byte.sched_in.missed),
        latencies(finding.in_latency_ns),
        wrong(byte.wrongly_set),
        wrong(byte.wrongly_clear),
        steal(tally),
    ]
}

fn of_moves(row: &Row, Moves { moves, tally }: &Moves) -> [String; 7] {
    [
        row.publisher.to_string(),
        verdict(tally.doubts.is_empty()),
        count(*moves),
        count(tally.outs),
        counted(tally),
        ins(tally),
        steal(tally),
    ]
}

fn verdict(is_known: bool) -> String {
    if is_known { "known" } else { "unknown" }.to_owned()
}

fn counted(tally: &Tally) -> String {
    tally.counted.map_or_else(|| "-".to_owned(), |counts| count(counts.program.sched_out))
}

/// All, what of them was lost and found out, and what the publisher counted.
fn ins(tally: &Tally) -> String {
    let all = count(tally.ins);
    tally.counted.map_or_else(
        || format!("{all}, -, -"),
        |Counts { program, .. }| {
            format!("{all}, {}, {}", count(program.healed + program.unseen), count(program.timeslices()))
        },
    )
}

fn steal(tally: &Tally) -> String {
    format!("{:.4}", tally.steal_ns as f64 / tally.lost_ns.max(1) as f64)
}

fn stretches(share: f64, longest_ns: u64) -> String {
    format!("{:.3} %, {:.3}", 100.0 * share, longest_ns as f64 / 1e6)
}
