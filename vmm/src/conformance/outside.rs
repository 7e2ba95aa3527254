//! Outside: what the monitor judges, which sees the vCPUs' threads, and can stop them.

use super::{ConformanceError, Plan, Verdicts};
use crate::publisher::PublisherKind;

/// Judges `publisher` from outside.
pub(super) fn judge(
    _plan: &Plan,
    _publisher: PublisherKind,
    _verdicts: &mut Verdicts,
) -> Result<(), ConformanceError> {
    Ok(())
}
