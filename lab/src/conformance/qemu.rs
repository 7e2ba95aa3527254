//! QEMU: the same payload and scenes under another monitor.
//!
//! With KVM, the in-kernel publisher writes the records. With TCG there is no steal time. The
//! payload reports on COM1, with one line for each assertion.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use protocol::payload::conformance::Assertion;
use protocol::payload::params::Scene;

use super::scenes::{ABSENT, CHECK, SETTINGS, Setting};
use super::{Plan, Subject, Verdicts};
use crate::error::Error;
use crate::payload;
use host::{child, termination};

/// The program that is run.
pub const QEMU: &str = "qemu-system-x86_64";

/// Whether QEMU is installed.
pub fn is_installed() -> bool {
    let version = Command::new(QEMU).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    version.is_ok_and(|status| status.success())
}

/// Plays the scenes that a guest can judge on its own, on any CPUs.
pub(super) fn play_all(plan: &Plan, subject: Subject, verdicts: &mut Verdicts) -> Result<(), Error> {
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
        _ => "a guest cannot judge it on its own, or did not observe it",
    };
    for assertion in Assertion::ALL {
        verdicts.skip(*assertion, why);
    }
    Ok(())
}

fn play(plan: &Plan, subject: Subject, setting: Setting, verdicts: &mut Verdicts) -> Result<(), Error> {
    let vcpus = setting.vcpus(plan.cpus.count());
    let failed = |how: String| failed(setting.scene, subject, how);
    let cpu = cpu(subject, setting.scene);
    let booted = boot(cpu, vcpus, &setting.workload().to_string());
    if termination::requested().is_some() {
        return Err(Error::Interrupted);
    }
    let report = booted.map_err(failed)?;
    for (assertion, finding) in report.lines().filter_map(parse) {
        match finding {
            Ok(times) => verdicts.hold(assertion, times),
            Err(line) => {
                verdicts.refute(
                    assertion,
                    format!("judged by the guest in scene {}, line {line}", setting.scene),
                );
            }
        }
    }
    Ok(())
}

/// QEMU's options for accelerator and processor.
fn cpu(subject: Subject, scene: Scene) -> [&'static str; 4] {
    let kvm = match (subject, scene) {
        (Subject::QemuTcg, _) => return ["-accel", "tcg", "-cpu", "max"],
        (_, Scene::Absent) => "host,-arch-capabilities,kvm-steal-time=off,kvm-pv-enforce-cpuid=on",
        _ => "host,-arch-capabilities",
    };
    ["-accel", "kvm", "-cpu", kvm]
}

fn failed(scene: Scene, subject: Subject, how: String) -> Error {
    let accelerator = if subject == Subject::QemuTcg { "tcg" } else { "kvm" };
    Error::Qemu { scene: scene.name(), accelerator, how }
}

/// Boots the payload with this command line, and returns what it prints.
fn boot(cpu: [&str; 4], vcpus: usize, cmdline: &str) -> Result<String, String> {
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
    qemu.args(["-serial", "stdio", "-no-reboot", "-append", cmdline, "-kernel"]).arg(&payload);
    // Files, not pipes: the wait below is the only one, and termination ends it.
    let [printed, message] = ["stdout", "stderr"].map(|name| folder.path().join(name));
    let create = |path: &Path| File::create(path).map_err(|error| format!("no temporary file: {error}"));
    qemu.stdin(Stdio::null()).stdout(create(&printed)?).stderr(create(&message)?);
    let mut qemu = qemu.spawn().map_err(|error| error.to_string())?;
    let ended = child::wait(&mut qemu).map_err(|error| error.to_string())?;
    let read = |path: &Path| fs::read(path).map_err(|error| format!("its output cannot be read: {error}"));
    if ended.status.success() {
        return Ok(String::from_utf8_lossy(&read(&printed)?).into_owned());
    }
    let message = String::from_utf8_lossy(&read(&message)?).lines().last().unwrap_or_default().to_owned();
    Err(format!("{} {message}", ended.status))
}

/// Parses a line of the payload: an assertion with the number of times that it held (`Ok`), or with
/// the source line that found it broken (`Err`).
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
    fn line_of_the_payload_is_parsed_and_any_other_is_not() {
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
