//! The committed BPF objects match their sources.

use std::fs;
use std::process::Command;

use sha2::{Digest, Sha256};

const SOURCE_DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../steal-time/bpf");

const SOURCES: [&str; 4] = ["record.bpf.h", "init.bpf.h", "steal_time.bpf.c", "steal_time_classic.bpf.c"];
const OBJECTS: [&str; 2] = ["steal_time.bpf.o", "steal_time_classic.bpf.o"];

fn sha256(path: &str) -> String {
    format!("{:x}", Sha256::digest(fs::read(path).expect("a file of this repository")))
}

/// The record that `steal-time/bpf/build.sh` writes: the compiler, then the hash of each file.
fn record() -> String {
    fs::read_to_string(format!("{SOURCE_DIR}/steal_time.sha256")).expect("the record of the last build")
}

#[test]
fn committed_objects_were_built_from_the_committed_sources() {
    for file in SOURCES.into_iter().chain(OBJECTS) {
        let hash = sha256(&format!("{SOURCE_DIR}/{file}"));
        assert!(
            record().contains(&format!("{hash}  {file}\n")),
            "{file} changed: run steal-time/bpf/build.sh"
        );
    }
}

#[test]
fn objects_rebuilt_by_the_recorded_compiler_equal_the_committed_ones() {
    let recorded = record().lines().next().and_then(|line| line.strip_prefix("# ")).map(String::from);
    let version = Command::new("clang-14").arg("--version").output();
    let version =
        version.map(|output| String::from_utf8_lossy(&output.stdout).lines().next().map(String::from));
    if !matches!(&version, Ok(version) if *version == recorded) {
        return super::skip(&format!("the objects were built by {recorded:?}, here is {version:?}"));
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let build =
        Command::new(format!("{SOURCE_DIR}/build.sh")).arg(directory.path()).output().expect("a shell");
    assert!(build.status.success(), "{}", String::from_utf8_lossy(&build.stderr));
    for object in OBJECTS {
        let rebuilt = fs::read(directory.path().join(object)).expect("the object");
        let committed = fs::read(format!("{SOURCE_DIR}/{object}")).expect("the object");
        assert!(rebuilt == committed, "{object} differs when it is rebuilt");
    }
}
