//! QEMU: the same payload, the same scenes, another monitor.
//!
//! Under KVM, QEMU lets KVM keep the records; its own emulation of the processor has no steal time. What the payload
//! found it tells on COM1, a line for each assertion.

use std::fs;
use std::process::{Command, Stdio};

use protocol::payload::conformance::Assertion;
use protocol::payload::params::Scene;

use super::scenes::{ABSENT, CHECK, SETTINGS, Setting};
use super::{ConformanceError, Plan, Subject, Verdicts};
use crate::payload;

/// The program.
pub const QEMU: &str = "qemu-system-x86_64";

/// Whether QEMU is here.
pub fn is_here() -> bool {
    let version = Command::new(QEMU).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    version.is_ok_and(|status| status.success())
}

/// Plays the scenes that a guest judges alone, wherever its vCPUs run.
pub(super) fn play_all(
    plan: &Plan,
    subject: Subject,
    verdicts: &mut Verdicts,
) -> Result<(), ConformanceError> {
    play(plan, subject, ABSENT, verdicts)?;
    if subject == Subject::QemuTcg {
        play(plan, subject, CHECK, verdicts)?;
    }
    if subject == Subject::QemuKvm {
        for setting in SETTINGS.into_iter().filter(|setting| setting.cpus.is_none()) {
            play(plan, subject, setting, verdicts)?;
        }
    }
    let why = match subject {
        Subject::QemuTcg => "there is no steal time",
        _ => "no guest alone can judge it, or nobody saw it",
    };
    for assertion in Assertion::ALL {
        verdicts.pass_over(*assertion, why);
    }
    Ok(())
}

fn play(
    plan: &Plan,
    subject: Subject,
    setting: Setting,
    verdicts: &mut Verdicts,
) -> Result<(), ConformanceError> {
    let vcpus = setting.vcpus(plan.cpus.count());
    let failed = |how: String| failed(setting.scene, subject, how);
    let cpu = cpu(subject, setting.scene);
    let told = boot(cpu, vcpus, &setting.workload().to_string()).map_err(failed)?;
    for (assertion, finding) in told.lines().filter_map(parse) {
        match finding {
            Ok(times) => verdicts.hold(assertion, times),
            Err(line) => {
                verdicts.refute(assertion, format!("by the guest in scene {}, line {line}", setting.scene));
            }
        }
    }
    Ok(())
}

/// The processor that QEMU shows, and who executes its instructions.
fn cpu(subject: Subject, scene: Scene) -> [&'static str; 4] {
    let kvm = match (subject, scene) {
        (Subject::QemuTcg, _) => return ["-accel", "tcg", "-cpu", "max"],
        (_, Scene::Absent) => "host,-arch-capabilities,kvm-steal-time=off,kvm-pv-enforce-cpuid=on",
        _ => "host,-arch-capabilities",
    };
    ["-accel", "kvm", "-cpu", kvm]
}

fn failed(scene: Scene, subject: Subject, how: String) -> ConformanceError {
    let accelerator = if subject == Subject::QemuTcg { "tcg" } else { "kvm" };
    ConformanceError::Qemu { scene: scene.name(), accelerator, how }
}

/// What the payload prints when it boots with these words.
fn boot(cpu: [&str; 4], vcpus: usize, words: &str) -> Result<String, String> {
    let folder = tempfile::tempdir().map_err(|error| format!("no temporary folder: {error}"))?;
    let payload = folder.path().join("guest.bin");
    fs::write(&payload, payload::BYTES).map_err(|error| format!("the payload cannot be written: {error}"))?;
    let mut qemu = Command::new(QEMU);
    qemu.args(cpu).args([
        "-M",
        "q35",
        "-smp",
        &vcpus.to_string(),
        "-m",
        "64",
        "-nodefaults",
        "-display",
        "none",
    ]);
    qemu.args(["-serial", "stdio", "-no-reboot", "-append", words, "-kernel"]).arg(&payload);
    let ended = qemu.stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
    if ended.status.success() {
        return Ok(String::from_utf8_lossy(&ended.stdout).into_owned());
    }
    let complaint = String::from_utf8_lossy(&ended.stderr).lines().last().unwrap_or_default().to_owned();
    Err(format!("{} {complaint}", ended.status))
}

/// A line of the payload's: an assertion, and how often it held or where it was found broken.
fn parse(line: &str) -> Option<(Assertion, Result<u64, u64>)> {
    let mut words = line.trim().strip_prefix("assertion ")?.split_ascii_whitespace();
    let number: u8 = words.next()?.parse().ok()?;
    let assertion = Assertion::ALL.iter().find(|assertion| assertion.number() == number)?;
    let verdict = words.nth(1)?;
    let figure = words.next()?.parse().ok()?;
    Some((*assertion, if verdict == "held" { Ok(figure) } else { Err(figure) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_of_the_payload_is_read_and_any_other_is_not() {
        assert_eq!(parse("assertion 4 reads-back: held 22\r"), Some((Assertion::ReadsBack, Ok(22))));
        assert_eq!(
            parse("assertion 24 preempted-is-seen: BROKEN 281"),
            Some((Assertion::PreemptedIsSeen, Err(281)))
        );
        for line in ["", "4 vCPUs, job=conformance", "assertion 0 x: held 1", "assertion 4 reads-back: held"]
        {
            assert_eq!(parse(line), None, "{line}");
        }
    }
}
