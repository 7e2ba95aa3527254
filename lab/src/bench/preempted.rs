//! `bench preempted`: two vCPUs spin, and sample their own byte and each other's.
//!
//! On one CPU the other vCPU never runs while this one samples, so its byte should always be set.
//! On two idle CPUs both always run, so it should never be set. The own byte should never be set.

use std::fmt::{self, Display};

use protocol::payload::params::{Job, Workload};
use serde::Serialize;

use super::{BenchArgs, BenchReport, INTERRUPTED, TAKEN};
use crate::error::Error;
use crate::publisher::{self, ChosenPublisher};
use crate::render::HostLine;
use crate::results::RunResult;
use crate::runner::{Experiment, Rounds, Runner};
use crate::table::{Table, count_or_dash, figure, fixed, taken};
use host::facts::HostFacts;
use steal_time::publisher::{PublisherChoice, PublisherKind};

const VCPUS: usize = 2;

/// A publisher, and the number of CPUs that the vCPUs share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Point {
    pub(super) publisher: PublisherKind,
    pub(super) cpus: usize,
}

impl Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} CPUs", self.publisher, self.cpus)
    }
}

/// Results of all points.
#[derive(Debug, Serialize)]
pub(super) struct PreemptedBench {
    #[serde(flatten)]
    pub(super) runs: Rounds<Point, RunResult>,
    /// Publishers that the host refuses, and why.
    pub(super) refused: Vec<(PublisherKind, String)>,
}

pub(super) fn run(args: &BenchArgs) -> Result<PreemptedBench, Error> {
    let cpus = args.usable_cpus()?;
    if cpus.count() < VCPUS {
        return Err(Error::TooFewCpus(cpus));
    }
    let workload = Workload { job: Job::Watch, ..Workload::DEFAULT };
    publisher::announce_refused_bpf();
    let publishers = PublisherKind::ALL.into_iter().filter(|kind| *kind != PublisherKind::Off);
    let (mut allowed, mut refused) = (Vec::new(), Vec::new());
    for publisher in publishers {
        match ChosenPublisher::settle(PublisherChoice::Only(publisher)) {
            Ok(_) => allowed.push(publisher),
            Err(error) if error.is_of_the_publisher() => refused.push((publisher, error.line())),
            Err(error) => return Err(error),
        }
    }
    let points: Vec<_> =
        allowed.into_iter().flat_map(|publisher| [1, VCPUS].map(|cpus| Point { publisher, cpus })).collect();
    let host = HostFacts::probe();
    let runs = Runner::once(args.quiet).measure(&points, |point| {
        let experiment = Experiment { host: host.clone(), cpus: cpus.first(point.cpus), workload };
        experiment.run(VCPUS, point.publisher, workload)
    })?;
    Ok(PreemptedBench { runs, refused })
}

impl BenchReport for PreemptedBench {
    fn was_interrupted(&self) -> bool {
        self.runs.interrupted
    }
}

impl Display for PreemptedBench {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.was_interrupted() {
            writeln!(f, "{INTERRUPTED}\n")?;
        }
        let header = [
            "publisher",
            "CPUs",
            "samples",
            "other's preempted set %",
            "own preempted set",
            "preempted",
            "healed",
            "taken",
        ];
        let mut table = Table::new(&header, 2);
        for (point, run) in self.runs.iter() {
            let window = run.window.as_ref();
            let Some((window, preempted)) = window.and_then(|window| Some((window, window.preempted?)))
            else {
                continue;
            };
            let publications = run.vcpus.iter().filter_map(|vcpu| vcpu.publication);
            let healed: u64 = publications.map(|counts| counts.program.healed).sum();
            table.row([
                point.publisher.to_string(),
                point.cpus.to_string(),
                figure(preempted.other_samples as f64),
                fixed(100.0 * preempted.other_share(), 3),
                preempted.own_set.to_string(),
                count_or_dash(window.host.preemptions),
                healed.to_string(),
                taken(self.runs.disturbance(point)),
            ]);
        }
        if let Some(first) = self.runs.first() {
            let host = HostLine(&first.host);
            writeln!(f, "Two vCPUs spin and sample; {host}, 1 s a row\n")?;
        }
        write!(f, "{table}\n{TAKEN}")?;
        self.refused.iter().try_for_each(|(publisher, why)| writeln!(f, "{publisher}: not measured: {why}"))
    }
}
