//! The i8042 keyboard controller, reduced to its reset line.

use std::cell::Cell;
use std::convert::Infallible;

use vm_superio::{I8042Device, Trigger};

use crate::{Device, Request};

/// Five ports. Command 0xfe at offset 4 pulses the reset line; other commands have no effect.
pub struct I8042(I8042Device<ResetLine>);

/// Whether the current write pulsed the line.
#[derive(Default)]
struct ResetLine(Cell<bool>);

impl Trigger for ResetLine {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.set(true);
        Ok(())
    }
}

impl I8042 {
    /// Creates a controller with its reset line idle.
    pub fn new() -> Self {
        Self(I8042Device::new(ResetLine::default()))
    }
}

impl Default for I8042 {
    fn default() -> Self {
        Self::new()
    }
}

impl Device for I8042 {
    fn read(&mut self, offset: u16) -> u8 {
        u8::try_from(offset).map_or(0, |offset| self.0.read(offset))
    }

    fn write(&mut self, offset: u16, value: u8) -> Option<Request> {
        let Ok(()) = self.0.write(u8::try_from(offset).ok()?, value);
        self.0.reset_evt().0.take().then_some(Request::Reset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_reset_command_at_the_command_port_resets() {
        let mut i8042 = I8042::new();
        assert_eq!(i8042.write(0, 0xfe), None);
        assert_eq!(i8042.write(4, 0xad), None);
        assert_eq!(i8042.write(4, 0xfe), Some(Request::Reset));
        assert_eq!(i8042.write(4, 0xad), None);
    }
}
