//! The devices of the guest machine.
//!
//! A device is a few bytes of port space and what it does when one of them is read or written. It knows nothing of
//! KVM and nothing of vCPUs: it is called with an offset and a byte, and where the whole machine must act it answers
//! with a [`Request`], which the monitor carries out.
//!
//! - [`bus`]: who answers at a port; unknown ports read all ones, and a counter remembers them.
//! - [`serial`], which is COM1.
//! - [`reset`]: the i8042 keyboard controller, of which only the reset line exists.
//! - [`exit`]: the exit port, whose value becomes the exit status.
//! - [`milestone`]: marks in time that the guest sets.
//! - [`doorbell`]: a vCPU offers its CPU to another.

pub mod bus;
pub mod doorbell;
pub mod exit;
pub mod milestone;
pub mod reset;
pub mod serial;

pub use bus::{BusError, PortBus, Unclaimed};
pub use doorbell::Doorbell;
pub use exit::ExitPort;
pub use milestone::MilestonePort;
pub use reset::I8042;
pub use serial::{Serial, SerialInput};

/// A device in port space, one byte at a time.
pub trait Device: Send {
    /// The guest reads the byte at `offset` from the device's first port.
    fn read(&mut self, offset: u16) -> u8;

    /// The guest writes `value` at `offset` from the device's first port.
    fn write(&mut self, offset: u16, value: u8) -> Option<Request>;
}

/// What a device asks of the whole machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// The guest pulsed the reset line: it ended well.
    Reset,
    /// The guest wrote this status to the exit port.
    Exit(u8),
    /// The guest set this mark.
    Milestone(u8),
    /// The vCPU that wrote offers its CPU to the one with this number.
    YieldTo(u8),
}
