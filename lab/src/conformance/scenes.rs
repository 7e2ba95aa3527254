//! Scenes: what our payload judges from inside, under this monitor.

use protocol::payload::conformance::Assertion;
use protocol::payload::params::{Job, Scene, Workload};

use super::{ConformanceError, Plan, Verdict, Verdicts};
use crate::experiment::Experiment;
use crate::results::{ByteFigures, RunResult, WindowFigures};
use host::cpus::Cpus;
use steal_time::publisher::{MsrOwner, PublisherKind};

/// A scene, and the machine that it is played on.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// The scene.
    pub scene: Scene,
    /// vCPUs, if it does not matter how many CPUs there are.
    vcpus: usize,
    /// vCPUs for each CPU; more than one makes the host preempt.
    overcommit: usize,
    /// CPUs, if not all.
    pub cpus: Option<usize>,
    /// How long it takes, where that is a matter of choice.
    duration_ms: u32,
}

impl Setting {
    const fn of(scene: Scene, vcpus: usize) -> Self {
        Self { scene, vcpus, overcommit: 0, cpus: None, duration_ms: 300 }
    }

    /// Its vCPUs on so many CPUs.
    pub fn vcpus(&self, cpus: usize) -> usize {
        self.vcpus.max(self.overcommit * cpus)
    }

    /// What the payload is asked to do.
    pub fn workload(&self) -> Workload {
        let Self { scene, duration_ms, .. } = *self;
        Workload { job: Job::Conformance, scene, warmup_ms: 20, duration_ms, ..Workload::DEFAULT }
    }
}

/// The scene for a feature that is off.
pub const ABSENT: Setting = Setting::of(Scene::Absent, 1);

/// The scene that needs neither a feature nor a host.
pub const CHECK: Setting = Setting::of(Scene::Check, 1);

/// All other scenes, in the order in which they are played.
pub const SETTINGS: [Setting; 7] = [
    Setting::of(Scene::Msr, 2),
    CHECK,
    Setting::of(Scene::Init, 2),
    Setting::of(Scene::Roam, 3),
    Setting { overcommit: 2, duration_ms: 600, ..Setting::of(Scene::Spin, 2) },
    Setting { cpus: Some(1), ..Setting::of(Scene::Spin, 2) },
    Setting::of(Scene::Block, 3),
];

/// Times that a scene is played to see what has not been seen.
const TRIES: usize = 4;

/// Plays all scenes with `publisher`.
pub(super) fn play_all(
    plan: &Plan,
    publisher: PublisherKind,
    verdicts: &mut Verdicts,
) -> Result<(), ConformanceError> {
    if publisher.msr_owner() == MsrOwner::Monitor {
        play(plan, PublisherKind::Off, ABSENT, verdicts)?;
    } else {
        let why = "KVM answers whatever CPUID says, unless it is told otherwise; here the monitor would hide the MSR";
        verdicts.pass_over(Assertion::AbsentFaults, why);
    }
    for setting in SETTINGS {
        for _ in 0..TRIES {
            play(plan, publisher, setting, verdicts)?;
            if has_shown_all(setting, verdicts) {
                break;
            }
        }
    }
    Ok(())
}

/// Whether to play this again would show no more. On a busy host vCPUs that are to watch each other may hardly ever run at
/// the same time.
fn has_shown_all(setting: Setting, verdicts: &Verdicts) -> bool {
    let watches = setting.scene == Scene::Spin && setting.cpus.is_none();
    let of_watching = [Assertion::ByteAlone, Assertion::PreemptedIsSeen];
    let is_unseen = |assertion| matches!(verdicts.of(assertion), Verdict::Unjudged { .. });
    !watches || !of_watching.into_iter().any(is_unseen)
}

fn play(
    plan: &Plan,
    publisher: PublisherKind,
    setting: Setting,
    verdicts: &mut Verdicts,
) -> Result<(), ConformanceError> {
    let cpus = setting.cpus.map_or_else(|| plan.cpus.clone(), |count| plan.cpus.first(count));
    let workload = setting.workload();
    let vcpus = setting.vcpus(cpus.count());
    let experiment = Experiment { host: plan.host.clone(), cpus: cpus.clone(), workload };
    let result = experiment.play(vcpus, publisher, workload)?;
    take_findings(setting.scene, &result, verdicts);
    if let Some((window, byte)) = result.window.as_ref().and_then(|window| Some((window, window.byte?))) {
        match setting.scene {
            Scene::Spin => judge_spinners(&cpus, vcpus, window, byte, verdicts),
            Scene::Block => judge_leaving(window, byte, verdicts),
            Scene::Msr | Scene::Absent | Scene::Check | Scene::Init | Scene::Roam => {}
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
                verdicts
                    .refute(assertion, format!("by the guest in scene {scene}, line {line}{}", seen(result)));
            }
        }
    }
}

/// How much was seen of the byte, where the scene looked.
fn seen(result: &RunResult) -> String {
    match result.window.as_ref().and_then(|window| Some((window, window.byte?))) {
        Some((window, byte)) => format!(
            " (preempted {} times, byte seen set in {:.2} % of samples)",
            window.host.preemptions,
            100.0 * byte.other_share()
        ),
        None => String::new(),
    }
}

/// On one CPU nobody else runs while one looks. Otherwise somebody must have been seen coming and going.
fn judge_spinners(
    cpus: &Cpus,
    vcpus: usize,
    window: &WindowFigures,
    byte: ByteFigures,
    verdicts: &mut Verdicts,
) {
    // A vCPU that was woken waits for its CPU without having lost it: where others take so much, that is many samples.
    if cpus.count() == 1 && !window.host.disturbed {
        let why = || {
            format!("byte set in {:.2} % of samples of {vcpus} vCPUs on one CPU", 100.0 * byte.other_share())
        };
        verdicts.judge(Assertion::PreemptedIsSeen, byte.other_share() >= 0.99, why);
    }
    let preemptions = window.host.preemptions;
    for assertion in [Assertion::ByteAlone, Assertion::ByteIsOneOrZero] {
        let why =
            format!("nobody saw the byte being set, in {preemptions} preemptions on {} CPUs", cpus.count());
        verdicts.pass_over(assertion, why);
    }
}

/// The byte of a vCPU in the monitor is set for as long as the host really took the CPU from somebody, and not longer.
fn judge_leaving(window: &WindowFigures, byte: ByteFigures, verdicts: &mut Verdicts) {
    let taken = window.host.run_delay_ns as f64 / window.length_ns.max(1) as f64;
    let share = byte.other_share();
    let why = || {
        format!(
            "byte of a vCPU in the monitor set in {share:.3} of samples, preempted for {taken:.3} of the time"
        )
    };
    verdicts.judge(Assertion::BlockedIsNotPreempted, share <= 0.01 + taken, why);
    // Guest and host close their windows some time slices apart, however long these are.
    let (guest, host) = (window.guest_steal_ns, window.host.run_delay_ns);
    let why =
        || format!("steal grew by {guest} ns while one vCPU was in the monitor, run delay by {host} ns");
    verdicts.judge(Assertion::MonitorAddsNothing, guest <= host + host / 8 + 30_000_000, why);
}
