//! The console: input reaches a foreign guest, and a terminal is restored.

use std::fs::File;
use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::support::terminal::OnTerminal;
use crate::support::{Exclusive, Fixture, end_of, kill, needs, vmm_run};

fn echo(fixture: &Fixture) -> Command {
    vmm_run(["--vcpus", "1", "--memory", "4", "--publisher", "off", "--quiet", "--payload", fixture.arg()])
}

#[test]
fn piped_bytes_reach_the_guest_in_order_whatever_their_number() {
    needs!(kvm);
    let fixture = Fixture::assembled("echo.S");
    let mut text: Vec<u8> =
        (0..3000_u32).map(|place| b"abcdefghij\r\n\x03\x01 "[place as usize % 15]).collect();
    text.push(b'q');
    let expected = [b">", &text[..]].concat();

    let exclusive = Exclusive::take();
    let mut monitor = echo(&fixture);
    monitor.args(["--timeout", "30"]);
    let mut child = monitor.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = {
        let text = text.clone();
        thread::spawn(move || stdin.write_all(&text))
    };
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().expect("the monitor reads all of it");
    assert_eq!((output.status.code(), &output.stdout), (Some(0), &expected));

    drop(exclusive);

    // The same from a plain file, which epoll refuses
    let file = Fixture::file("typed", &text);
    let ended = end_of(echo(&fixture).stdin(File::open(&file.path).unwrap()));
    assert_eq!((ended.status, ended.stdout.as_bytes()), (Some(0), &expected[..]));
}

#[test]
fn end_of_standard_input_does_not_end_the_guest() {
    needs!(kvm);
    let fixture = Fixture::assembled("echo.S");
    let ended = end_of(echo(&fixture).args(["--timeout", "0.3"]).stdin(Stdio::null()));
    assert_eq!((ended.status, ended.stdout.as_str()), (Some(4), ">"));
}

#[test]
fn terminal_of_a_foreign_guest_is_raw_and_restored_however_the_run_ends() {
    needs!(kvm);
    let fixture = Fixture::assembled("echo.S");
    for (ending, status) in [("q", 0), ("\x01x", 130), ("TERM", 130), ("INT", 130), ("timeout", 4)] {
        let mut command = echo(&fixture);
        if ending == "timeout" {
            command.args(["--timeout", "1"]);
        }
        let mut monitor = OnTerminal::start(&mut command);
        monitor.wait_for(">");
        assert!(monitor.is_raw(), "{ending:?}");
        // The guest gets Ctrl-C, and the second of two escapes
        monitor.type_keys(b"\x03a\x01\x01b");
        monitor.wait_for("\x03a\x01b");
        match ending {
            "TERM" | "INT" => kill(monitor.id(), ending),
            "timeout" => {}
            keys => monitor.type_keys(keys.as_bytes()),
        }
        assert_eq!(monitor.end(), Some(status), "{ending:?}");
    }
}

#[test]
fn escape_is_printed_and_an_early_end_restores_the_terminal() {
    needs!(kvm);
    let fixture = Fixture::assembled("echo.S");
    let mut command =
        vmm_run(["--vcpus", "1", "--memory", "4", "--publisher", "off", "--payload", fixture.arg()]);
    let mut monitor = OnTerminal::start(&mut command);
    monitor.wait_for("Ctrl-A x");
    monitor.type_keys(b"\x01x");
    assert_eq!(monitor.end(), Some(130));
}

#[test]
fn terminal_of_the_embedded_payload_stays_cooked() {
    needs!(kvm);
    let options = ["--vcpus", "2", "--publisher", "off", "--job", "idle", "--duration-ms", "60000"];
    let mut monitor = OnTerminal::start(&mut vmm_run(options));
    thread::sleep(Duration::from_millis(300));
    assert!(!monitor.is_raw());
    // So the terminal turns Ctrl-C into SIGINT
    monitor.type_keys(b"\x03");
    assert_eq!(monitor.end(), Some(130));
}
