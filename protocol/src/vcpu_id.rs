//! vCPU numbers.

use core::fmt;

/// The largest number of vCPUs of a guest.
///
/// An xAPIC id has 8 bits and 255 is the broadcast address, so ids run from 0 to 254.
pub const MAX_VCPUS: usize = 255;

/// The number of a vCPU: its index in every table, its APIC id, and the argument of the check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VcpuId(u8);

impl VcpuId {
    /// The boot vCPU.
    pub const BOOT: Self = Self(0);

    /// Returns the vCPU with this index, or `None` from [`MAX_VCPUS`] on.
    pub const fn new(index: usize) -> Option<Self> {
        if index < MAX_VCPUS {
            #[expect(clippy::cast_possible_truncation, reason = "MAX_VCPUS fits a byte")]
            let id = index as u8;
            Some(Self(id))
        } else {
            None
        }
    }

    /// Iterates over the vCPUs of a guest that has `count` of them, at most [`MAX_VCPUS`].
    pub fn first(count: usize) -> impl DoubleEndedIterator<Item = Self> + ExactSizeIterator + Clone {
        (0..u8::try_from(count.min(MAX_VCPUS)).unwrap_or(u8::MAX)).map(Self)
    }

    /// The index of this vCPU in per-vCPU tables, from 0.
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The xAPIC id of this vCPU.
    pub const fn apic_id(self) -> u8 {
        self.0
    }
}

impl fmt::Display for VcpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_beyond_the_last_xapic_id_is_none() {
        assert_eq!(VcpuId::new(254).map(VcpuId::apic_id), Some(254));
        assert_eq!(VcpuId::new(255), None);
    }

    #[test]
    fn first_counts_from_the_boot_vcpu() {
        assert_eq!(VcpuId::first(3).next(), Some(VcpuId::BOOT));
        assert_eq!(VcpuId::first(3).len(), 3);
        assert_eq!(VcpuId::first(1000).len(), MAX_VCPUS);
    }
}
