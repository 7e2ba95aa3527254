//! The byte: two vCPUs that spin, and sample their own byte and each other's.
//!
//! On one CPU the other one is never running while this one samples, so its byte should always be set. On two idle
//! CPUs both run all the time, so it should never be. The own byte should never be set.

use std::fmt::{self, Display};

use protocol::payload::params::{Job, Workload};
use serde::Serialize;

use super::{Bench, BenchError};
use crate::cli::{BenchArgs, usable_cpus};
use crate::experiment::Experiment;
use crate::results::RunResult;
use crate::table::{Table, figure};
use host::facts::HostFacts;
use steal_time::publisher::PublisherKind;

const VCPUS: usize = 2;

/// All runs.
#[derive(Debug, Serialize)]
pub(super) struct ByteBench(Vec<RunResult>);

pub(super) fn run(args: &BenchArgs) -> Result<ByteBench, BenchError> {
    let cpus = usable_cpus(args.cpus.as_ref())?;
    if cpus.count() < VCPUS {
        return Err(BenchError::TooFewCpus(cpus));
    }
    let workload = Workload { job: Job::Watch, ..Workload::DEFAULT };
    let mut runs = Vec::new();
    for publisher in PublisherKind::ALL.into_iter().filter(|kind| *kind != PublisherKind::Off) {
        for count in [1, VCPUS] {
            let experiment = Experiment { host: HostFacts::probe(), cpus: cpus.first(count), workload };
            runs.push(experiment.run(VCPUS, publisher, workload)?);
        }
    }
    Ok(ByteBench(runs))
}

impl Bench for ByteBench {}

impl Display for ByteBench {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header =
            ["publisher", "CPUs", "samples", "other's byte set %", "own byte set", "preempted", "healed"];
        let mut table = Table::new(&header, 2);
        for run in &self.0 {
            let Some((window, byte)) = run.window.as_ref().and_then(|window| Some((window, window.byte?)))
            else {
                continue;
            };
            let healed = run
                .vcpus
                .iter()
                .filter_map(|vcpu| vcpu.publication)
                .map(|counts| counts.program.healed)
                .sum::<u64>();
            table.row([
                run.publisher.kind.to_string(),
                format!("{}{}", run.guest.cpus.count(), if window.host.disturbed { "*" } else { "" }),
                figure(byte.other_samples as f64),
                format!("{:.3}", 100.0 * byte.other_share()),
                byte.own_set.to_string(),
                window.host.preemptions.to_string(),
                healed.to_string(),
            ]);
        }
        if let Some(run) = self.0.first() {
            writeln!(
                f,
                "Two vCPUs spin and sample; {} (KVM on {}, Linux {}), 1 s a row; * disturbed by others\n",
                run.host.processor, run.host.kvm_backend, run.host.kernel
            )?;
        }
        write!(f, "{table}")
    }
}
