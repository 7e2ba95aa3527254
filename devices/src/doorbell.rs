//! The doorbell: a vCPU that waits for another offers it its own CPU.

use crate::{Device, Request};

/// One port, write only.
#[derive(Debug, Default)]
pub struct Doorbell;

impl Device for Doorbell {
    fn read(&mut self, _offset: u16) -> u8 {
        0
    }

    fn write(&mut self, _offset: u16, value: u8) -> Option<Request> {
        Some(Request::YieldTo(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ringing_it_asks_for_the_vcpu_that_was_written() {
        assert_eq!(Doorbell.write(0, 7), Some(Request::YieldTo(7)));
        assert_eq!(Doorbell.read(0), 0);
    }
}
