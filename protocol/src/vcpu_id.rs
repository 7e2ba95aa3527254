//! The one name a vCPU has.

use core::fmt;

/// The most vCPUs a guest can have.
///
/// An xAPIC id has 8 bits and 255 is the broadcast address, so ids run from 0 to 254.
pub const MAX_VCPUS: usize = 255;

/// A vCPU's number: its index in every table, its APIC id, and the `cpu` argument of the check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VcpuId(u8);

impl VcpuId {
    /// The boot vCPU.
    pub const BOOT: Self = Self(0);

    /// The vCPU with this index, or `None` beyond [`MAX_VCPUS`].
    pub const fn new(index: usize) -> Option<Self> {
        if index < MAX_VCPUS {
            #[expect(clippy::cast_possible_truncation, reason = "MAX_VCPUS fits a byte")]
            let id = index as u8;
            Some(Self(id))
        } else {
            None
        }
    }

    /// All vCPUs of a guest that has `count` of them (or [`MAX_VCPUS`], if `count` is more).
    pub fn first(count: usize) -> impl DoubleEndedIterator<Item = Self> + ExactSizeIterator + Clone {
        (0..u8::try_from(count.min(MAX_VCPUS)).unwrap_or(u8::MAX)).map(Self)
    }

    /// The index into a per-vCPU table.
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The xAPIC id.
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
