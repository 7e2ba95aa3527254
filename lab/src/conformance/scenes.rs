//! Scenes: the payload judges assertions from inside the guest, under this monitor.

use protocol::payload::conformance::Assertion;
use protocol::payload::params::{Job, Scene, Workload};

use super::snapshots::RUN_DELAY_IS_UNKNOWN;
use super::{Plan, Verdict, Verdicts};
use crate::error::Error;
use crate::results::statistics::ratio;
use crate::results::{PreemptedFigures, RunResult, WindowFigures};
use crate::runner::Experiment;
use crate::table::{count_or_dash, fixed};
use host::cpus::Cpus;
use steal_time::publisher::{MsrOwner, PublisherKind};

/// A scene, and the guest that plays it.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// The scene.
    pub scene: Scene,
    /// Smallest number of vCPUs.
    vcpus: usize,
    /// Smallest number of vCPUs per CPU. More than one makes the host preempt them.
    overcommit: usize,
    /// Number of CPUs; `None` for all.
    pub cpus: Option<usize>,
    /// Length of the measured window (ms), in scenes that have one.
    duration_ms: u32,
}

impl Setting {
    const fn of(scene: Scene, vcpus: usize) -> Self {
        Self { scene, vcpus, overcommit: 0, cpus: None, duration_ms: 300 }
    }

    /// Number of vCPUs on `cpus` CPUs.
    pub fn vcpus(&self, cpus: usize) -> usize {
        self.vcpus.max(self.overcommit * cpus)
    }

    /// The payload's workload.
    pub fn workload(&self) -> Workload {
        let Self { scene, duration_ms, .. } = *self;
        Workload { job: Job::Conformance, scene, warmup_ms: 20, duration_ms, ..Workload::DEFAULT }
    }
}

/// The scene for a guest without the feature.
pub const ABSENT: Setting = Setting::of(Scene::Absent, 1);

/// The scene that needs no steal time.
pub const CHECK: Setting = Setting::of(Scene::Check, 1);

/// The scenes of a guest with the feature, in the order in which they are played.
pub const SETTINGS: [Setting; 9] = [
    Setting::of(Scene::Msr, 2),
    CHECK,
    Setting::of(Scene::Init, 2),
    Setting::of(Scene::InitByPit, 2),
    Setting::of(Scene::InitByCom1, 2),
    Setting::of(Scene::Roam, 3),
    Setting { overcommit: 2, duration_ms: 600, ..Setting::of(Scene::Spin, 2) },
    Setting { cpus: Some(1), ..Setting::of(Scene::Spin, 2) },
    Setting::of(Scene::Block, 3),
];

/// How often a scene is played, at most, until it has observed all of its assertions.
const TRIES: usize = 4;

/// Plays all scenes with `publisher`.
pub(super) fn play_all(plan: &Plan, publisher: PublisherKind, verdicts: &mut Verdicts) -> Result<(), Error> {
    if publisher.msr_owner() == MsrOwner::Monitor {
        play(plan, PublisherKind::Off, ABSENT, verdicts)?;
    } else {
        let why = "KVM serves the MSR whatever CPUID says; here the monitor would hide it, not KVM";
        verdicts.skip(Assertion::AbsentFaults, why);
    }
    for setting in SETTINGS {
        for _ in 0..TRIES {
            play(plan, publisher, setting, verdicts)?;
            if is_complete(setting, verdicts) {
                break;
            }
        }
    }
    Ok(())
}

/// Whether the scene has observed all of its assertions. On a busy host, vCPUs that watch each
/// other may hardly ever run at the same time.
fn is_complete(setting: Setting, verdicts: &Verdicts) -> bool {
    let watches = setting.scene == Scene::Spin && setting.cpus.is_none();
    let by_watching = [Assertion::ByteAlone, Assertion::PreemptedIsSeen];
    let is_unobserved = |assertion| matches!(verdicts.of(assertion), Verdict::Unjudged { .. });
    !watches || !by_watching.into_iter().any(is_unobserved)
}

fn play(
    plan: &Plan,
    publisher: PublisherKind,
    setting: Setting,
    verdicts: &mut Verdicts,
) -> Result<(), Error> {
    let cpus = setting.cpus.map_or_else(|| plan.cpus.clone(), |count| plan.cpus.first(count));
    let workload = setting.workload();
    let vcpus = setting.vcpus(cpus.count());
    let experiment = Experiment { host: plan.host.clone(), cpus: cpus.clone(), workload };
    let result = experiment.run_to_end(vcpus, publisher, workload)?;
    take_findings(setting.scene, &result, verdicts);
    if let Some((window, byte)) = result.window.as_ref().and_then(|window| Some((window, window.preempted?)))
    {
        match setting.scene {
            Scene::Spin => judge_spinners(&cpus, vcpus, window, byte, verdicts),
            Scene::Block => judge_leaving(window, byte, verdicts),
            _ => {}
        }
    }
    Ok(())
}

fn take_findings(scene: Scene, result: &RunResult, verdicts: &mut Verdicts) {
    for (assertion, finding) in
        Assertion::ALL.iter().filter_map(|assertion| Some((*assertion, result.finding(*assertion)?)))
    {
        match finding.broken_at {
            None => verdicts.hold(assertion, finding.held),
            Some(line) => {
                verdicts.refute(
                    assertion,
                    format!("judged by the guest in scene {scene}, line {line}{}", observed(result)),
                );
            }
        }
    }
}

/// What the guest observed of `preempted`, in scenes that sample it.
fn observed(result: &RunResult) -> String {
    match result.window.as_ref().and_then(|window| Some((window, window.preempted?))) {
        Some((window, byte)) => format!(
            " ({} preemptions; preempted set in {} % of samples)",
            count_or_dash(window.host.preemptions),
            fixed(100.0 * byte.other_share(), 2)
        ),
        None => String::new(),
    }
}

/// On one CPU, no other vCPU runs while one samples: the byte of all others must be set. On several
/// CPUs the guest judges for itself, if it observed the byte change.
fn judge_spinners(
    cpus: &Cpus,
    vcpus: usize,
    window: &WindowFigures,
    byte: PreemptedFigures,
    verdicts: &mut Verdicts,
) {
    // A vCPU that was woken waits for its CPU without being preempted. Other tasks make that wait
    // long.
    if cpus.count() == 1 && !window.is_disturbed() {
        let why = || {
            format!(
                "preempted set in {} % of samples of {vcpus} vCPUs on one CPU",
                fixed(100.0 * byte.other_share(), 2)
            )
        };
        verdicts.judge(Assertion::PreemptedIsSeen, byte.other_share() >= 0.99, why);
    }
    let preemptions = count_or_dash(window.host.preemptions);
    for assertion in [Assertion::ByteAlone, Assertion::ByteIsOneOrZero] {
        let why = format!(
            "no vCPU observed preempted being set, in {preemptions} preemptions on {} CPUs",
            cpus.count()
        );
        verdicts.skip(assertion, why);
    }
}

/// The byte of a vCPU that exits to the monitor is set while the host has preempted its thread, and
/// at no other time.
fn judge_leaving(window: &WindowFigures, byte: PreemptedFigures, verdicts: &mut Verdicts) {
    let Some(run_delay_ns) = window.host.run_delay_ns else {
        verdicts.skip(Assertion::BlockedIsNotPreempted, RUN_DELAY_IS_UNKNOWN);
        return verdicts.skip(Assertion::MonitorAddsNothing, RUN_DELAY_IS_UNKNOWN);
    };
    let taken = ratio(run_delay_ns as f64, window.length_ns as f64);
    let share = byte.other_share();
    if !(taken + share).is_finite() {
        verdicts.skip(Assertion::BlockedIsNotPreempted, "the guest ended before it sampled the byte");
        return verdicts.skip(Assertion::MonitorAddsNothing, "the window had no length");
    }
    let why = || {
        format!(
            "preempted of a vCPU that exits is set in {share:.3} of samples; vCPUs were preempted for {taken:.3} of the time"
        )
    };
    judge_time(window, verdicts, Assertion::BlockedIsNotPreempted, share <= 0.01 + taken, why);
    // Guest and host close their windows some time slices apart.
    let (guest, host) = (window.guest_steal_ns, run_delay_ns);
    let why =
        || format!("steal grew by {guest} ns while one vCPU exited to the monitor, run delay by {host} ns");
    let holds = guest <= host + host / 8 + 30_000_000;
    judge_time(window, verdicts, Assertion::MonitorAddsNothing, holds, why);
}

/// Judges `assertion` by times of `window`. If others took CPU time meanwhile, times that are too
/// long say nothing.
fn judge_time(
    window: &WindowFigures,
    verdicts: &mut Verdicts,
    assertion: Assertion,
    holds: bool,
    why: impl FnOnce() -> String,
) {
    if !holds && window.is_disturbed() {
        verdicts.skip(assertion, format!("disturbed: {}", window.host.disturbance));
    } else {
        verdicts.judge(assertion, holds, why);
    }
}
