//! The port bus: who answers where.
//!
//! Port space is made of bytes. A wider access is what it is on the ISA bus, one access to each byte in turn, so a
//! device never sees a width. It ends early when a device makes a [`Request`].

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::{Device, Request};

/// What a byte reads that no device answers for.
const FLOATING: u8 = 0xff;

/// Two devices want the same port.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("Ports {new:#x?} overlap ports {old:#x?}, which have a device already")]
pub struct BusError {
    /// The ports that were asked for.
    pub new: Range<u32>,
    /// The ports that are taken.
    pub old: Range<u32>,
}

/// How often the guest touched bytes that no device answers for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unclaimed {
    /// Bytes read, as all ones.
    pub reads: u64,
    /// Bytes written, into nothing.
    pub writes: u64,
}

/// The port bus. All vCPUs share it; each device is locked for the length of one byte.
#[derive(Default)]
pub struct PortBus {
    claims: Vec<Claim>,
    unclaimed_reads: AtomicU64,
    unclaimed_writes: AtomicU64,
}

struct Claim {
    ports: Range<u32>,
    device: Mutex<Box<dyn Device>>,
}

impl PortBus {
    /// A bus without devices.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets `device` answer for `count` ports from `first`.
    ///
    /// # Errors
    /// [`BusError`] when a port of these is taken; nothing has changed then.
    pub fn attach(&mut self, first: u16, count: u16, device: impl Device + 'static) -> Result<(), BusError> {
        let new = u32::from(first)..u32::from(first) + u32::from(count);
        if let Some(claim) = self.claims.iter().find(|c| c.ports.start < new.end && new.start < c.ports.end) {
            return Err(BusError { new, old: claim.ports.clone() });
        }
        self.claims.push(Claim { ports: new, device: Mutex::new(Box::new(device)) });
        Ok(())
    }

    /// One read of `data.len()` bytes at `port`.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        for (port, byte) in (u32::from(port)..).zip(data) {
            *byte = self.at(port, |device, offset| device.read(offset)).unwrap_or_else(|| {
                self.unclaimed_reads.fetch_add(1, Ordering::Relaxed);
                FLOATING
            });
        }
    }

    /// One write of `data` at `port`, up to the first request that a device makes of it.
    pub fn write(&self, port: u16, data: &[u8]) -> Option<Request> {
        for (port, byte) in (u32::from(port)..).zip(data) {
            match self.at(port, |device, offset| device.write(offset, *byte)) {
                Some(Some(request)) => return Some(request),
                Some(None) => {}
                None => {
                    self.unclaimed_writes.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        None
    }

    /// What nobody answered for so far.
    pub fn unclaimed(&self) -> Unclaimed {
        Unclaimed {
            reads: self.unclaimed_reads.load(Ordering::Relaxed),
            writes: self.unclaimed_writes.load(Ordering::Relaxed),
        }
    }

    fn at<R>(&self, port: u32, access: impl FnOnce(&mut dyn Device, u16) -> R) -> Option<R> {
        let claim = self.claims.iter().find(|claim| claim.ports.contains(&port))?;
        let offset = u16::try_from(port - claim.ports.start).ok()?;
        // A device that panicked on another thread is still a device: its next byte is worth no less than an abort.
        let mut device = claim.device.lock().unwrap_or_else(PoisonError::into_inner);
        Some(access(device.as_mut(), offset))
    }
}

impl std::fmt::Debug for PortBus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.claims.iter().map(|claim| &claim.ports)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads back what was written last, plus the offset; asks for an exit on 0xee.
    struct Echo(u8);

    impl Device for Echo {
        fn read(&mut self, offset: u16) -> u8 {
            self.0 + u8::try_from(offset).unwrap()
        }

        fn write(&mut self, _offset: u16, value: u8) -> Option<Request> {
            self.0 = value;
            (value == 0xee).then_some(Request::Exit(1))
        }
    }

    #[test]
    fn wide_access_reaches_each_byte_in_turn() {
        let mut bus = PortBus::new();
        bus.attach(0x10, 2, Echo(5)).unwrap();
        let mut data = [0; 4];
        bus.read(0x0f, &mut data);
        assert_eq!(data, [0xff, 5, 6, 0xff]);
        assert_eq!(bus.unclaimed(), Unclaimed { reads: 2, writes: 0 });
    }

    #[test]
    fn write_ends_at_the_first_request() {
        let mut bus = PortBus::new();
        bus.attach(0x10, 1, Echo(0)).unwrap();
        assert_eq!(bus.write(0x10, &[0xee, 1, 2]), Some(Request::Exit(1)));
        assert_eq!(bus.write(0x10, &[1, 2, 3]), None);
        assert_eq!(bus.unclaimed(), Unclaimed { reads: 0, writes: 2 });
    }

    #[test]
    fn last_port_does_not_wrap_around() {
        let mut bus = PortBus::new();
        bus.attach(0, 1, Echo(7)).unwrap();
        bus.attach(0xffff, 1, Echo(9)).unwrap();
        let mut data = [0; 2];
        bus.read(0xffff, &mut data);
        assert_eq!(data, [9, 0xff]);
    }

    #[test]
    fn overlapping_device_is_refused_and_the_first_stays() {
        let mut bus = PortBus::new();
        bus.attach(0x3f8, 8, Echo(1)).unwrap();
        assert_eq!(bus.attach(0x3ff, 1, Echo(2)), Err(BusError { new: 0x3ff..0x400, old: 0x3f8..0x400 }));
        let mut data = [0];
        bus.read(0x3f8, &mut data);
        assert_eq!(data, [1]);
    }
}
