//! COM1: a 16550 UART. Its transmitter feeds a writer; its receiver is fed by a [`SerialInput`].

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use vm_superio::Trigger;
use vm_superio::serial::SerialEvents;
use vmm_sys_util::eventfd::EventFd;

use crate::{Device, Request, lock};

/// The modem control register. Its loopback bit disconnects the receiver from the line.
const MODEM_CONTROL: u16 = 4;

type Uart<W> = vm_superio::Serial<InterruptLine, Room, W>;

/// A 16550 UART. It writes each transmitted byte to `W`, and signals interrupts through an eventfd.
pub struct Serial<W: Write>(Arc<Mutex<Uart<W>>>);

struct InterruptLine(EventFd);

impl Trigger for InterruptLine {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Signals that the receive FIFO is empty.
struct Room(EventFd);

impl SerialEvents for Room {
    fn buffer_read(&self) {}

    fn out_byte(&self) {}

    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        // The write fails only when the counter is full: the event is already pending.
        let _ = self.0.write(1);
    }
}

/// The host's end of the line: feeds the guest's receiver.
pub struct SerialInput(Arc<Mutex<dyn Receive + Send>>);

/// A receiver with a bounded FIFO.
trait Receive {
    /// Queues the bytes that fit, from the first, and returns their number.
    fn receive(&mut self, bytes: &[u8]) -> usize;
}

impl<W: Write> Receive for Uart<W> {
    fn receive(&mut self, bytes: &[u8]) -> usize {
        // A failed trigger means a full eventfd counter: the interrupt is already pending.
        let room = self.fifo_capacity().min(bytes.len());
        match self.enqueue_raw_bytes(bytes) {
            Ok(taken) => taken,
            Err(vm_superio::serial::Error::Trigger(_)) => room,
            Err(_) => 0,
        }
    }
}

impl<W: Write + Send + 'static> Serial<W> {
    /// Creates a UART that transmits to `out` and signals `interrupt`, and the input that feeds it.
    ///
    /// The UART signals `room` whenever its receive FIFO becomes empty.
    pub fn new(interrupt: EventFd, room: EventFd, out: W) -> (Self, SerialInput) {
        let uart = Uart::with_events(InterruptLine(interrupt), Room(room), out);
        let uart = Arc::new(Mutex::new(uart));
        (Self(Arc::clone(&uart)), SerialInput(uart))
    }
}

impl SerialInput {
    /// Sends the bytes that fit into the receive FIFO, from the first, and returns their number.
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
        // The reader of `out` may have gone (`vmm ... | head`). The guest must not see that: its
        // bytes are lost, as on an unconnected line.
        let _ = uart.write(u8::try_from(offset).ok()?, value);
        if offset == MODEM_CONTROL {
            uart.events().in_buffer_empty();
        }
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

    fn serial<W: Write + Send + 'static>(interrupt: EventFd, out: W) -> (Serial<W>, SerialInput) {
        Serial::new(interrupt, EventFd::new(0).unwrap(), out)
    }

    #[test]
    fn received_bytes_are_read_in_order_and_a_full_fifo_drops_none() {
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
            assert!(room.read().is_ok(), "an empty FIFO signals room");
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
    fn loopback_receives_nothing_and_its_end_signals_room() {
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

    /// `EFD_NONBLOCK` on x86, which spares this crate a dependency on libc.
    fn libc_nonblock() -> i32 {
        0o4000
    }

    #[test]
    fn transmitted_bytes_reach_the_writer_and_the_transmitter_is_always_ready() {
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
    fn failing_writer_is_invisible_to_the_guest() {
        let (mut serial, _) = serial(EventFd::new(0).unwrap(), Gone);
        assert_eq!(serial.write(0, b'x'), None);
        assert_eq!(serial.read(5) & 0x60, 0x60);
    }
}
