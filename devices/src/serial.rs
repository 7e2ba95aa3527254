//! COM1: a 16550 whose transmitter is a writer.

use std::io::{self, Write};

use vm_superio::Trigger;
use vm_superio::serial::NoEvents;
use vmm_sys_util::eventfd::EventFd;

use crate::{Device, Request};

/// A 16550 UART. What the guest sends goes to a writer, byte by byte; its interrupt line is an eventfd.
pub struct Serial<W: Write>(vm_superio::Serial<InterruptLine, NoEvents, W>);

struct InterruptLine(EventFd);

impl Trigger for InterruptLine {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

impl<W: Write> Serial<W> {
    /// A UART that sends to `out` and raises `interrupt`.
    pub fn new(interrupt: EventFd, out: W) -> Self {
        Self(vm_superio::Serial::new(InterruptLine(interrupt), out))
    }
}

impl<W: Write + Send> Device for Serial<W> {
    fn read(&mut self, offset: u16) -> u8 {
        u8::try_from(offset).map_or(0xff, |offset| self.0.read(offset))
    }

    fn write(&mut self, offset: u16, value: u8) -> Option<Request> {
        // A reader that has gone away (`vmm ... | head`) is no business of the guest's: what it sends is lost, as
        // on a line with nothing at its end.
        let _ = self.0.write(u8::try_from(offset).ok()?, value);
        None
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Write for Captured {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(data);
            Ok(data.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Gone;

    impl Write for Gone {
        fn write(&mut self, _data: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn bytes_sent_reach_the_writer_and_the_line_is_always_ready() {
        let out = Captured::default();
        let mut serial = Serial::new(EventFd::new(0).unwrap(), out.clone());
        for byte in *b"ok\n" {
            assert_eq!(serial.read(5) & 0x60, 0x60);
            assert_eq!(serial.write(0, byte), None);
        }
        assert_eq!(*out.0.lock().unwrap(), b"ok\n");
    }

    #[test]
    fn transmitter_interrupt_is_raised_once_enabled() {
        let interrupt = EventFd::new(0).unwrap();
        let mut serial = Serial::new(interrupt.try_clone().unwrap(), Captured::default());
        serial.write(1, 0x02);
        assert_eq!(interrupt.read().unwrap(), 1);
    }

    #[test]
    fn writer_that_has_gone_away_costs_the_guest_nothing() {
        let mut serial = Serial::new(EventFd::new(0).unwrap(), Gone);
        assert_eq!(serial.write(0, b'x'), None);
        assert_eq!(serial.read(5) & 0x60, 0x60);
    }
}
