//! The table: a publisher a row.

use std::fmt;

use super::{Finding, Quality, Row};
use crate::publisher::Counts;
use crate::table::{Table, count, figure};

const HEADER: [&str; 15] = [
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

impl fmt::Display for Quality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = &self.host;
        writeln!(
            f,
            "One spinning vCPU, preempted fast and slowly, and held; {} (KVM on {}, Linux {})\n",
            host.processor, host.kvm_backend, host.kernel
        )?;
        let mut table = Table::new(&HEADER, 2);
        for row in &self.rows {
            match &row.finding {
                Ok(finding) => table.row(cells(row, finding)),
                Err(_) => table.row([row.publisher.to_string(), "-".to_owned()]),
            }
        }
        writeln!(f, "{table}")?;
        for row in &self.rows {
            match &row.finding {
                Ok(finding) => {
                    for doubt in &finding.doubts {
                        writeln!(f, "{}: unknown, since {doubt}", row.publisher)?;
                    }
                    if let Some(faults) = &finding.faults {
                        writeln!(f, "{}: of its own faults it counts {faults:?}", row.publisher)?;
                    }
                }
                Err(why) => writeln!(f, "{}: not measured: {why}", row.publisher)?,
            }
        }
        writeln!(
            f,
            "Latencies are from the kernel's own record of a switch to the byte seen changed on another CPU; less than 0 is \
             before it. Wrong: share of the time looked at."
        )
    }
}

fn cells(row: &Row, finding: &Finding) -> [String; 15] {
    let Finding { byte, .. } = finding;
    let microseconds = |ns: Option<i64>| ns.map_or("-".to_owned(), |ns| figure(ns as f64 / 1e3));
    let latencies = |ns: [Option<i64>; 4]| ns.map(microseconds).join(" / ");
    let wrong = |direction: crate::oracle::Direction| {
        let share = 100.0 * direction.total_ns as f64 / byte.observed_ns.max(1) as f64;
        format!("{share:.3} %, {:.3}", direction.longest_ns as f64 / 1e6)
    };
    let counted = finding.counted.map_or_else(|| "-".to_owned(), |counts| count(counts.program.outs));
    let ins = finding.counted.map_or_else(
        || format!("{}, -", count(finding.ins)),
        |Counts { program, .. }| {
            let healed = count(program.healed + program.unseen);
            format!("{}, {healed}, {}", count(finding.ins), count(program.arrivals()))
        },
    );
    [
        row.publisher.to_string(),
        if finding.doubts.is_empty() { "known" } else { "unknown" }.to_owned(),
        count(finding.outs),
        counted,
        format!("{} of {}", byte.outs.missed, byte.outs.happened),
        count(byte.outs.unobserved + byte.ins.unobserved),
        count(byte.falsely_set),
        latencies(finding.out_latency_ns),
        count(byte.ins.happened),
        ins,
        count(byte.ins.missed),
        latencies(finding.in_latency_ns),
        wrong(byte.wrongly_set),
        wrong(byte.wrongly_clear),
        format!("{:.4}", finding.steal_ns as f64 / finding.lost_ns.max(1) as f64),
    ]
}
