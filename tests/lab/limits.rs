//! Limits of the process: each that is reached is named, with its cure.

use std::process::Command;

use crate::support::{Ended, end_of, needs};

/// Runs a guest that resets at once, with at most `files` open files.
fn with_open_files(files: u32, publisher: &str) -> Ended {
    let script = format!(r#"ulimit -n {files} && exec "$0" "$@""#);
    let args = ["run", "--vcpus", "1", "--job", "reset", "--timeout", "20", "--publisher", publisher];
    let mut command = Command::new("sh");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_vmm-lab")]).args(args);
    end_of(&mut command)
}

#[test]
fn limit_of_open_files_is_named_with_its_cure_wherever_it_is_reached() {
    needs!(bpf);
    let mut reached = 0;
    for publisher in ["bpf", "perf", "off"] {
        for files in 3..48 {
            let ended = with_open_files(files, publisher);
            if ended.status == Some(0) {
                continue;
            }
            reached += 1;
            assert_eq!(ended.status, Some(1), "{publisher} {files}: {ended:?}");
            assert!(ended.stderr.contains("raise `ulimit -n`"), "{publisher} {files}: {ended:?}");
            assert!(!ended.stderr.contains("verifier"), "{publisher} {files}: {ended:?}");
        }
        assert_eq!(with_open_files(64, publisher).status, Some(0), "{publisher}");
    }
    assert!(reached > 30, "{reached} runs met the limit");
}
