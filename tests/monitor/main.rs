//! The monitor with real guests, run by the lab: its payload, Linux, QEMU, and the console.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::print_stderr, clippy::print_stdout, reason = "the test harness captures it")]

mod console;
mod job_control;
mod lifetime;
mod linux;
mod output;
mod payload;
mod qemu;
mod reports;
#[path = "../support/lab.rs"]
mod support;
mod termination;
