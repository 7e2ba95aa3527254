//! COM1: a 16550 whose transmitter is a writer, and whose receiver takes what somebody sends.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_superio::Trigger;
use vm_superio::serial::SerialEvents;
use vmm_sys_util::eventfd::EventFd;

use crate::{Device, Request};

/// The modem control register, which can close the line in a loop: then nothing is received.
const MODEM_CONTROL: u16 = 4;

type Uart<W> = vm_superio::Serial<InterruptLine, Room, W>;

/// A 16550 UART. What the guest sends goes to a writer, byte by byte; its interrupt line is an eventfd.
pub struct Serial<W: Write>(Arc<Mutex<Uart<W>>>);

struct InterruptLine(EventFd);

impl Trigger for InterruptLine {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Tells that there is room for more in the receiver.
struct Room(EventFd);

impl SerialEvents for Room {
    fn buffer_read(&self) {}

    fn out_byte(&self) {}

    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        // An eventfd whose counter is full has been told often enough.
        let _ = self.0.write(1);
    }
}

/// The other end of the line: sends to the guest.
pub struct SerialInput(Arc<Mutex<dyn Receive + Send>>);

/// A receiver with room for a few bytes.
trait Receive {
    /// Takes as many of `bytes` as there is room for, and gives how many.
    fn receive(&mut self, bytes: &[u8]) -> usize;
}

impl<W: Write> Receive for Uart<W> {
    fn receive(&mut self, bytes: &[u8]) -> usize {
        // An interrupt that could not be raised is one that is raised already.
        let room = self.fifo_capacity().min(bytes.len());
        match self.enqueue_raw_bytes(bytes) {
            Ok(taken) => taken,
            Err(vm_superio::serial::Error::Trigger(_)) => room,
            Err(_) => 0,
        }
    }
}

impl<W: Write + Send + 'static> Serial<W> {
    /// A UART that sends to `out` and raises `interrupt`, and the way to send to the guest. `room` is raised whenever there
    /// is room again.
    pub fn new(interrupt: EventFd, room: EventFd, out: W) -> (Self, SerialInput) {
        let uart = Uart::with_events(InterruptLine(interrupt), Room(room), out);
        let uart = Arc::new(Mutex::new(uart));
        (Self(Arc::clone(&uart)), SerialInput(uart))
    }
}

impl SerialInput {
    /// Sends as many of `bytes` as the receiver has room for, and gives how many.
    pub fn send(&self, bytes: &[u8]) -> usize {
        lock(&self.0).receive(bytes)
    }
}

impl std::fmt::Debug for SerialInput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SerialInput").finish_non_exhaustive()
    }
}

impl<W: Write + Send> Device for Serial<W> {
    fn read(&mut self, offset: u16) -> u8 {
        u8::try_from(offset).map_or(0xff, |offset| lock(&self.0).read(offset))
    }

    fn write(&mut self, offset: u16, value: u8) -> Option<Request> {
        let mut uart = lock(&self.0);
        // A reader that has gone away (`vmm ... | head`) is no business of the guest's: what it sends is lost, as
        // on a line with nothing at its end.
        let _ = uart.write(u8::try_from(offset).ok()?, value);
        if offset == MODEM_CONTROL {
            uart.events().in_buffer_empty();
        }
        None
    }
}

fn lock<T: ?Sized>(uart: &Mutex<T>) -> MutexGuard<'_, T> {
    uart.lock().unwrap_or_else(PoisonError::into_inner)
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

    fn serial<W: Write + Send + 'static>(interrupt: EventFd, out: W) -> (Serial<W>, SerialInput) {
        Serial::new(interrupt, EventFd::new(0).unwrap(), out)
    }

    #[test]
    fn bytes_received_are_read_in_order_and_none_is_dropped_where_there_is_no_room() {
        let room = EventFd::new(libc_nonblock()).unwrap();
        let (mut serial, input) =
            Serial::new(EventFd::new(0).unwrap(), room.try_clone().unwrap(), Captured::default());
        let bytes: Vec<u8> = (0..100).collect();
        let mut sent = input.send(&bytes);
        assert!(sent > 0 && sent < bytes.len(), "its FIFO holds {sent}");
        assert_eq!(input.send(&bytes[sent..]), 0);
        let mut read = Vec::new();
        while read.len() < bytes.len() {
            while serial.read(5) & 1 != 0 {
                read.push(serial.read(0));
            }
            assert!(room.read().is_ok(), "the empty receiver tells of it");
            sent += input.send(&bytes[sent..]);
        }
        assert_eq!(read, bytes);
    }

    #[test]
    fn received_byte_raises_the_interrupt_once_enabled_and_is_identified() {
        let interrupt = EventFd::new(0).unwrap();
        let (mut serial, input) = serial(interrupt.try_clone().unwrap(), Captured::default());
        serial.write(1, 0x01);
        assert_eq!(input.send(b"x"), 1);
        assert_eq!(interrupt.read().unwrap(), 1);
        assert_eq!(serial.read(2) & 0x0f, 0x04);
        assert_eq!(serial.read(0), b'x');
    }

    #[test]
    fn nothing_is_received_in_a_loop_and_the_end_of_the_loop_is_told() {
        let room = EventFd::new(libc_nonblock()).unwrap();
        let (mut serial, input) =
            Serial::new(EventFd::new(0).unwrap(), room.try_clone().unwrap(), Captured::default());
        serial.write(MODEM_CONTROL, 0x10);
        assert_eq!(input.send(b"x"), 0);
        let _ = room.read();
        serial.write(MODEM_CONTROL, 0);
        assert!(room.read().is_ok());
        assert_eq!(input.send(b"x"), 1);
    }

    /// `EFD_NONBLOCK`, by its number on x86: this crate needs nothing else of the C library.
    fn libc_nonblock() -> i32 {
        0o4000
    }

    #[test]
    fn bytes_sent_reach_the_writer_and_the_line_is_always_ready() {
        let out = Captured::default();
        let (mut serial, _) = serial(EventFd::new(0).unwrap(), out.clone());
        for byte in *b"ok\n" {
            assert_eq!(serial.read(5) & 0x60, 0x60);
            assert_eq!(serial.write(0, byte), None);
        }
        assert_eq!(*out.0.lock().unwrap(), b"ok\n");
    }

    #[test]
    fn transmitter_interrupt_is_raised_once_enabled() {
        let interrupt = EventFd::new(0).unwrap();
        let (mut serial, _) = serial(interrupt.try_clone().unwrap(), Captured::default());
        serial.write(1, 0x02);
        assert_eq!(interrupt.read().unwrap(), 1);
    }

    #[test]
    fn writer_that_has_gone_away_costs_the_guest_nothing() {
        let (mut serial, _) = serial(EventFd::new(0).unwrap(), Gone);
        assert_eq!(serial.write(0, b'x'), None);
        assert_eq!(serial.read(5) & 0x60, 0x60);
    }
}
