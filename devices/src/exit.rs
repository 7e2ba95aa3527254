//! The exit port: the byte that the guest writes becomes the exit status of the run.

use crate::{Device, Request};

/// One port. A write ends the run; a read returns 0.
#[derive(Debug, Default)]
pub struct ExitPort;

impl Device for ExitPort {
    fn read(&mut self, _offset: u16) -> u8 {
        0
    }

    fn write(&mut self, _offset: u16, value: u8) -> Option<Request> {
        Some(Request::Exit(value))
    }
}
