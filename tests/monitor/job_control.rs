//! Job control: what a shell does with the monitor on its terminal.

use std::process::Command;

use crate::support::terminal::OnTerminal;
use crate::support::{Fixture, kill, needs};

/// A shell with job control, which runs `script`. `"$@"` there is a guest that echoes.
fn shell(script: &str, fixture: &Fixture) -> OnTerminal {
    let mut bash = Command::new("bash");
    bash.args(["-c", &format!("set -m\n{script}"), "shell", env!("CARGO_BIN_EXE_vmm-lab"), "run"]);
    let options = ["--vcpus", "1", "--memory", "4", "--publisher", "off", "--quiet", "--payload"];
    OnTerminal::start(bash.args(options).arg(fixture.arg()))
}

#[test]
fn stopped_monitor_gives_the_terminal_back_and_takes_it_again_when_it_continues() {
    needs!(kvm, program("bash"));
    let fixture = Fixture::assembled("echo.S");
    let script = r#""$@"; echo "[stopped $?]"; read -r line; echo "[read $line]"; fg; echo "[ended $?]""#;
    let mut shell = shell(script, &fixture);
    shell.wait_for(">");
    shell.wait_until_raw(true);
    kill(shell.foreground(), "TSTP");
    // 128 and SIGTSTP
    shell.wait_for("[stopped 148]");
    assert!(!shell.is_raw());
    shell.type_keys(b"for the shell\n");
    shell.wait_for("[read for the shell]");
    shell.wait_until_raw(true);
    shell.type_keys(b"a\x03b");
    shell.wait_for("a\x03b");
    shell.type_keys(b"q");
    shell.wait_for("[ended 0]");
    assert_eq!(shell.end(), Some(0));
}

#[test]
fn monitor_stopped_without_notice_takes_the_terminal_again_when_it_continues() {
    needs!(kvm, program("bash"));
    let fixture = Fixture::assembled("echo.S");
    // Shells restore their own attributes when a job stops
    let script =
        r#"own=$(stty -g); "$@"; stty "$own"; echo "[stopped]"; read -r line; fg; echo "[ended $?]""#;
    let mut shell = shell(script, &fixture);
    shell.wait_for(">");
    shell.wait_until_raw(true);
    kill(shell.foreground(), "STOP");
    shell.wait_for("[stopped]");
    shell.type_keys(b"\n");
    shell.wait_until_raw(true);
    shell.type_keys(b"q");
    shell.wait_for("[ended 0]");
    assert_eq!(shell.end(), Some(0));
}

#[test]
fn monitor_in_the_background_leaves_the_terminal_to_the_shell_until_it_is_in_the_foreground() {
    needs!(kvm, program("bash"));
    let fixture = Fixture::assembled("echo.S");
    let script = r#""$@" & read -r line; echo "[read $line]"; read -r line
echo "[$(ps -o stat= -p $!) then $line]"; fg; echo "[ended $?]""#;
    let mut shell = shell(script, &fixture);
    shell.wait_for(">");
    assert!(!shell.is_raw());
    shell.type_keys(b"one\n");
    shell.wait_for("[read one]");
    shell.type_keys(b"two\n");
    // Sleeping or running, not stopped
    let seen = shell.wait_for(" then two]");
    let state = seen.rsplit('[').next().unwrap_or_default();
    assert!(state.starts_with(['S', 'R']), "{seen:?}");
    shell.wait_until_raw(true);
    shell.type_keys(b"x\x03y");
    let seen = shell.wait_for("x\x03y");
    assert!(!seen.contains("one") && !seen.contains("two"), "the guest got the shell's input: {seen:?}");
    shell.type_keys(b"q");
    shell.wait_for("[ended 0]");
    assert_eq!(shell.end(), Some(0));
}
