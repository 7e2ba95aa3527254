//! The lab: what it measures and judges, its command line, and the documents.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::print_stderr, clippy::print_stdout, reason = "the test harness captures it")]

mod accounting;
mod accuracy;
mod checks;
mod cli;
mod conformance;
mod documents;
mod doorbell;
mod limits;
mod locks;
mod mortality;
mod output;
mod rights;
mod sched;
mod streams;
#[path = "../support/lab.rs"]
mod support;
