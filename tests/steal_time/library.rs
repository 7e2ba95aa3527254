//! The steal-time library without the monitor: its example is a monitor of its own.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../../steal-time/examples/attach.rs"]
mod attach;
#[path = "../support/mod.rs"]
mod support;

use support::needs;

/// The example returns after each of its two guests has read that the other is preempted, and fails
/// after ten seconds.
#[test]
fn example_without_the_monitor_observes_preempted() {
    needs!(bpf);
    attach::main().expect("both guests read `preempted`");
}
