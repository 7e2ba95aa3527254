//! The milestone port: the guest marks a moment, and the monitor, who has the clock, remembers it.

use crate::{Device, Request};

/// One port, write only.
#[derive(Debug, Default)]
pub struct MilestonePort;

impl Device for MilestonePort {
    fn read(&mut self, _offset: u16) -> u8 {
        0
    }

    fn write(&mut self, _offset: u16, value: u8) -> Option<Request> {
        Some(Request::Milestone(value))
    }
}
