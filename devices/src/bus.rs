//! The port bus: dispatches each byte of a port access to the device that claims it.
//!
//! Port space is byte addressed. A wider access becomes one access per byte in ascending order, as
//! on the ISA bus, so a device sees no width. A [`Request`] ends the access early.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Device, Request, lock};

/// The value of a byte that no device drives.
const FLOATING: u8 = 0xff;

/// Two devices claim the same port.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("Cannot attach a device to ports {new:#x?}: ports {old:#x?} have a device already")]
pub struct BusError {
    /// The ports of the new device.
    pub new: Range<u32>,
    /// The ports of the attached device.
    pub old: Range<u32>,
}

/// Accesses that neither a device nor the monitor handled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unclaimed {
    /// Bytes read as all ones.
    pub reads: u64,
    /// Bytes written without effect.
    pub writes: u64,
}

/// The result of a port write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// At least one byte reached a device, and no device has a request.
    Handled,
    /// No byte reached a device. The caller handles the write, or drops it with
    /// [`PortBus::ignore_write`].
    Unclaimed,
    /// A device has a request. Later bytes of the write are dropped.
    Request(Request),
}

/// The port bus, shared by all vCPUs. A device is locked for the access to one byte.
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
    /// Creates a bus without devices.
    pub fn new() -> Self {
        Self::default()
    }

    /// Attaches `device` to `count` ports from `first`.
    ///
    /// # Errors
    /// [`BusError`] when another device claims one of the ports. The bus is then unchanged.
    pub fn attach(&mut self, first: u16, count: u16, device: impl Device + 'static) -> Result<(), BusError> {
        let new = u32::from(first)..u32::from(first) + u32::from(count);
        if let Some(claim) = self.claims.iter().find(|c| c.ports.start < new.end && new.start < c.ports.end) {
            return Err(BusError { new, old: claim.ports.clone() });
        }
        self.claims.push(Claim { ports: new, device: Mutex::new(Box::new(device)) });
        Ok(())
    }

    /// Reads `data.len()` bytes from `port`. Bytes without a device read as all ones and are
    /// counted.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        for (port, byte) in (u32::from(port)..).zip(data) {
            *byte = self.access(port, |device, offset| device.read(offset)).unwrap_or_else(|| {
                self.unclaimed_reads.fetch_add(1, Ordering::Relaxed);
                FLOATING
            });
        }
    }

    /// Writes `data` to `port`, up to the first request of a device.
    ///
    /// Bytes without a device are counted only when another byte of the same write has one;
    /// otherwise the caller decides (see [`Written::Unclaimed`]).
    pub fn write(&self, port: u16, data: &[u8]) -> Written {
        let (mut claimed, mut unclaimed) = (0, 0);
        for (port, byte) in (u32::from(port)..).zip(data) {
            match self.access(port, |device, offset| device.write(offset, *byte)) {
                Some(Some(request)) => {
                    self.ignore_write(unclaimed);
                    return Written::Request(request);
                }
                Some(None) => claimed += 1,
                None => unclaimed += 1,
            }
        }
        if claimed == 0 && unclaimed > 0 {
            return Written::Unclaimed;
        }
        self.ignore_write(unclaimed);
        Written::Handled
    }

    /// Counts `bytes` written without effect.
    pub fn ignore_write(&self, bytes: usize) {
        self.unclaimed_writes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Returns the number of bytes that neither a device nor the caller handled so far.
    pub fn unclaimed(&self) -> Unclaimed {
        Unclaimed {
            reads: self.unclaimed_reads.load(Ordering::Relaxed),
            writes: self.unclaimed_writes.load(Ordering::Relaxed),
        }
    }

    fn access<R>(&self, port: u32, access: impl FnOnce(&mut dyn Device, u16) -> R) -> Option<R> {
        let claim = self.claims.iter().find(|claim| claim.ports.contains(&port))?;
        let offset = u16::try_from(port - claim.ports.start).ok()?;
        Some(access(lock(&claim.device).as_mut(), offset))
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

    /// Returns the byte written last plus the offset. 0xee requests an exit.
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
    fn wide_access_reaches_each_byte_in_order() {
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
        assert_eq!(bus.write(0x10, &[0xee, 1, 2]), Written::Request(Request::Exit(1)));
        assert_eq!(bus.write(0x10, &[1, 2, 3]), Written::Handled);
        assert_eq!(bus.unclaimed(), Unclaimed { reads: 0, writes: 2 });
    }

    #[test]
    fn write_without_a_device_is_counted_only_when_the_caller_ignores_it() {
        let bus = PortBus::new();
        assert_eq!(bus.write(0xf8, &[1, 2]), Written::Unclaimed);
        assert_eq!(bus.unclaimed(), Unclaimed::default());
        bus.ignore_write(2);
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
