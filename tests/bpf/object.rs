//! The committed object is what its source says.

use std::fs;
use std::process::Command;

use sha2::{Digest, Sha256};

const SOURCE_DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../resources/bpf");

fn sha256(path: &str) -> String {
    format!("{:x}", Sha256::digest(fs::read(path).expect("a file of this repository")))
}

/// What `resources/bpf/build.sh` recorded: the compiler, then file by file its hash.
fn record() -> String {
    fs::read_to_string(format!("{SOURCE_DIR}/steal_time.sha256")).expect("the record of the last build")
}

#[test]
fn committed_object_was_built_from_the_committed_source() {
    for file in ["steal_time.bpf.c", "steal_time.bpf.o"] {
        let hash = sha256(&format!("{SOURCE_DIR}/{file}"));
        assert!(
            record().contains(&format!("{hash}  {file}\n")),
            "{file} changed: run resources/bpf/build.sh"
        );
    }
}

#[test]
fn object_rebuilt_by_the_recorded_compiler_equals_the_committed_one() {
    let recorded = record().lines().next().and_then(|line| line.strip_prefix("# ")).map(String::from);
    let version = Command::new("clang-14").arg("--version").output();
    let version =
        version.map(|output| String::from_utf8_lossy(&output.stdout).lines().next().map(String::from));
    if !matches!(&version, Ok(version) if *version == recorded) {
        return super::skip(&format!("built with {recorded:?}, which is not here ({version:?})"));
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let build =
        Command::new(format!("{SOURCE_DIR}/build.sh")).arg(directory.path()).output().expect("a shell");
    assert!(build.status.success(), "{}", String::from_utf8_lossy(&build.stderr));
    let rebuilt = fs::read(directory.path().join("steal_time.bpf.o")).expect("the object");
    let committed = fs::read(format!("{SOURCE_DIR}/steal_time.bpf.o")).expect("the object");
    assert!(rebuilt == committed, "the rebuilt object differs");
}
