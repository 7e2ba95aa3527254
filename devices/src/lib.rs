//! Port I/O devices for a small x86 virtual machine: a 16550 UART, the i8042 reset line, an exit
//! port, and the bus that dispatches accesses to them.
//!
//! A device sees one byte at an offset into its own ports. It knows neither KVM nor vCPUs. Where a
//! write concerns the whole machine, the device returns a [`Request`] for the monitor.
//!
//! - [`bus`]: dispatches port accesses, and counts those without a device.
//! - [`serial`]: COM1, a 16550 UART.
//! - [`reset`]: the i8042 keyboard controller, reduced to its reset line.
//! - [`exit`]: the exit port, which ends the run with a status.
//!
//! A monitor attaches its devices once and passes each port exit to the bus:
//!
//! ```
//! use devices::{ExitPort, I8042, PortBus, Request, Written};
//!
//! let mut bus = PortBus::new();
//! bus.attach(0x60, 5, I8042::new())?;
//! bus.attach(0xf4, 1, ExitPort)?;
//!
//! assert_eq!(bus.write(0xf4, &[3]), Written::Request(Request::Exit(3)));
//! assert_eq!(bus.write(0x64, &[0xfe]), Written::Request(Request::Reset));
//! // No device claims port 0x80. The monitor may handle the write itself, or ignore and count it.
//! assert_eq!(bus.write(0x80, &[0]), Written::Unclaimed);
//! # Ok::<(), devices::BusError>(())
//! ```

pub mod bus;
pub mod exit;
pub mod reset;
pub mod serial;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use bus::{BusError, PortBus, Unclaimed, Written};
pub use exit::ExitPort;
pub use reset::I8042;
pub use serial::{Serial, SerialInput};

/// A device in port space, accessed one byte at a time.
pub trait Device: Send {
    /// Returns the byte at `offset` from the device's first port.
    fn read(&mut self, offset: u16) -> u8;

    /// Writes `value` at `offset` from the device's first port. Returns what the monitor must do.
    fn write(&mut self, offset: u16, value: u8) -> Option<Request>;
}

/// A device's request to the monitor, which concerns the whole machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Reset: the guest pulsed the reset line.
    Reset,
    /// End the run with this status, which the guest wrote to the exit port.
    Exit(u8),
}

/// Locks `mutex`, poisoned or not. A panic on one vCPU thread must not take the device from the
/// others.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
