//! Calls of a policy, which may panic.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::policy::{Decision, Event, Policy, SchedState};

thread_local! {
    static IS_IN_POLICY: Cell<bool> = const { Cell::new(false) };
}

/// Whether the calling thread executes a policy. A panic is then the policy's.
pub fn is_in_policy() -> bool {
    IS_IN_POLICY.get()
}

/// Delivers `event` to `policy`, which adds its decisions to `out`.
///
/// # Errors
/// The message of the policy's panic. The policy must not be called again.
pub(super) fn decide(
    policy: &mut dyn Policy,
    event: Event,
    state: &SchedState,
    out: &mut Vec<Decision>,
) -> Result<(), String> {
    IS_IN_POLICY.set(true);
    // A policy that panicked is not called again, so its broken invariants have no observer.
    let decided = catch_unwind(AssertUnwindSafe(|| policy.decide(event, state, out)));
    IS_IN_POLICY.set(false);
    decided.map_err(|panic| message_of(&*panic))
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}
