//! What tests of the lab share: the lab as a process, and guests in this process.

#![allow(dead_code, unused_imports, reason = "each test file uses its own part")]

#[path = "bpf.rs"]
mod bpf;
pub(crate) mod bpf_ids;
#[path = "mod.rs"]
mod common;

use std::ffi::OsStr;
use std::io;
use std::process::{Command, Stdio};
use std::time::Instant;

use host::facts::HostFacts;
use lab::guest::{self, LabConfig, LabRun};
use lab::results::RunResult;
use steal_time::publisher::PublisherKind;
use vmm::timings::Timings;

pub(crate) use bpf::{has_bpf, has_classic_bpf};
pub(crate) use common::*;

/// The lab, as a command.
pub(crate) fn vmm_lab<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmm-lab"));
    command.args(args).stdin(Stdio::null());
    command
}

/// `vmm-lab run`, as a command.
pub(crate) fn vmm_run<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = vmm_lab(["run"]);
    command.args(args);
    command
}

/// A guest with the embedded payload that does `words`.
pub(crate) fn guest(vcpus: usize, publisher: PublisherKind, words: &str) -> LabConfig {
    LabConfig::embedded(vcpus, cpus(), publisher, words.to_owned(), LIMIT)
}

/// Runs a guest in this process, and makes its document.
pub(crate) fn run(config: &LabConfig) -> (LabRun, RunResult) {
    let run = alone(|| guest::run(config, io::sink(), Timings::since(Instant::now())));
    let run = run.expect("the guest can be run");
    let result = RunResult::new(HostFacts::probe(), config, &run);
    (run, result)
}
