//! What tests of the monitor share.

#![allow(dead_code, unused_imports, reason = "each test binary uses its own part")]

#[path = "mod.rs"]
mod common;

use std::ffi::OsStr;
use std::process::{Command, Stdio};

pub(crate) use common::*;

/// The monitor, as a command.
pub(crate) fn vmm<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmm"));
    command.args(args).stdin(Stdio::null());
    command
}
