//! Steal time of real guests: records, publishers, and their state.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod byte;
mod growth;
mod init;
mod publishers;
mod records;
mod reports;
mod state;
#[path = "../support/lab.rs"]
mod support;
