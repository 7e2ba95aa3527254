//! Results files: whatever happens, the old content or the new one is there as a whole. Pipes are
//! written directly, and never hold the process.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use lab::payload;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::support::{end_of, kill, needs, start, vmm_lab, vmm_run, wait_for, wait_until};

/// How often a writer is killed.
const KILLS: usize = 20;

/// A folder with the file `results`, which holds `old`.
fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let results = folder.path().join("results");
    fs::write(&results, "old").expect("a file can be written");
    (folder, results)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary folders have plain names")
}

fn count(folder: &tempfile::TempDir) -> usize {
    folder.path().read_dir().expect("the folder is there").count()
}

/// Whether the process has a thread of this name.
fn has_thread(pid: u32, name: &str) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("the process lives").flatten();
    let comm = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
    threads.map(comm).any(|comm| comm.trim_end() == name)
}

#[test]
fn results_that_do_not_fit_on_the_disk_leave_the_old_file() {
    let (folder, results) = folder();
    let script = "ulimit -f 8; exec \"$0\" write-payload \"$1\"";
    let lab = env!("CARGO_BIN_EXE_vmm-lab");
    let ended = end_of(Command::new("sh").args(["-c", script, lab, text(&results)]));
    assert_eq!(ended.status, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("Cannot write") && ended.stderr.contains("too large"), "{ended:?}");
    assert_eq!(fs::read(&results).expect("it is there"), b"old");
    assert_eq!(count(&folder), 1);
}

#[test]
fn results_are_old_or_complete_whenever_their_writer_is_killed() {
    for _ in 0..KILLS {
        let (folder, results) = folder();
        let writer = start(&mut vmm_lab(["write-payload", text(&results)]));
        // The kill comes as soon as the file changes. A writer in place is in the middle then.
        while fs::metadata(&results).expect("it is there").len() == 3 {
            thread::yield_now();
        }
        kill(writer.id(), "KILL");
        drop(writer);
        assert!(fs::read(&results).expect("it is there") == payload::BYTES, "it is incomplete");
        assert_eq!(count(&folder), 1);
    }
}

#[test]
fn fifo_that_is_not_read_ends_with_the_timeout_or_a_signal() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let fifo = folder.path().join("fifo");
    mkfifo(&fifo, Mode::S_IRWXU).expect("a FIFO can be made");
    let ended = end_of(&mut vmm_run(["--timeout", "0.2", "--json", text(&fifo)]));
    assert_eq!(ended.status, Some(4), "{ended:?}");
    assert!(ended.stderr.contains("opened this FIFO"), "{ended:?}");
    for command in ["conformance", "accuracy"] {
        let mut running = start(vmm_lab([command, "--json", text(&fifo)]).stderr(Stdio::piped()));
        let mut stderr = running.take_stderr().expect("it is piped");
        wait_until("signals are handled", || has_thread(running.id(), "termination"));
        kill(running.id(), "TERM");
        assert_eq!(wait_for(running), Some(130), "{command}");
        let mut printed = String::new();
        stderr.read_to_string(&mut printed).expect("text");
        assert!(printed.contains("opened this FIFO"), "{command}: {printed}");
    }
}

#[test]
fn fifo_and_descriptor_receive_the_whole_results() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let fifo = folder.path().join("fifo");
    mkfifo(&fifo, Mode::S_IRWXU).expect("a FIFO can be made");
    let writer = start(&mut vmm_lab(["write-payload", text(&fifo)]));
    assert!(fs::read(&fifo).expect("it is written") == payload::BYTES);
    assert_eq!(wait_for(writer), Some(0));

    // As a shell's process substitution: >(...)
    let script = "exec \"$0\" write-payload /dev/fd/3 3>&1 >/dev/null";
    let lab = env!("CARGO_BIN_EXE_vmm-lab");
    for command in [
        vmm_lab(["write-payload", "/dev/stdout"]).stdout(Stdio::piped()),
        Command::new("sh").args(["-c", script, lab]).stdout(Stdio::piped()),
    ] {
        let output = command.output().expect("the command runs");
        assert!(output.status.success(), "{output:?}");
        assert!(output.stdout == payload::BYTES, "{} bytes", output.stdout.len());
    }
}

#[test]
fn what_is_printed_goes_behind_results_on_standard_output() {
    needs!(kvm);
    let (_folder, results) = folder();
    let file = fs::File::create(&results).expect("a file can be made");
    let args = ["--job", "reset", "--publisher", "off", "--json", "/dev/stdout"];
    assert_eq!(wait_for(start(vmm_run(args).stdout(file))), Some(0));
    let printed = fs::read_to_string(&results).expect("text");
    assert!(
        printed.starts_with("{\n") && printed.trim_end().ends_with("publisher off (requested)"),
        "{printed}"
    );
}

#[test]
fn results_that_would_replace_others_are_refused() {
    let (_folder, results) = folder();
    let results = text(&results);
    let twice = end_of(&mut vmm_run(["--json", results, "--trace", results]));
    assert_eq!(twice.status, Some(1), "{twice:?}");
    assert!(twice.stderr.contains("two kinds of results"), "{twice:?}");
    let script = "exec \"$0\" bench switch --json \"$1\" >\"$1\"";
    let own = end_of(Command::new("sh").args(["-c", script, env!("CARGO_BIN_EXE_vmm-lab"), results]));
    assert_eq!(own.status, Some(1), "{own:?}");
    assert!(own.stderr.contains("prints to it as well"), "{own:?}");
}
