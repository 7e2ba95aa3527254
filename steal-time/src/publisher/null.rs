//! The publishers `kernel` and `off`, in which the monitor has no part.

use protocol::VcpuId;

use super::{Publication, Publisher, PublisherKind};
use crate::error::StealTimeError;

/// A publisher that does nothing: KVM publishes, or no component does.
#[derive(Clone, Copy, Debug)]
pub struct NullPublisher(pub PublisherKind);

impl Publisher for NullPublisher {
    fn kind(&self) -> PublisherKind {
        self.0
    }

    fn attach(&self, _vcpu: VcpuId) -> Result<Option<Box<dyn Publication + '_>>, StealTimeError> {
        Ok(None)
    }
}
