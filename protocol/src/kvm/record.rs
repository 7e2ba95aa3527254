//! The record: 64 bytes per vCPU, shared by guest and host.
//!
//! | offset | bytes | field | writer | meaning |
//! |---|---|---|---|---|
//! | 0 | 8 | `steal` | host | ns that this vCPU wanted to run and could not |
//! | 8 | 4 | `version` | host | odd while the host updates `steal` |
//! | 12 | 4 | `flags` | host | 0 |
//! | 16 | 1 | `preempted` | host | not 0: the host has taken this vCPU off its CPU |
//! | 17 | 47 | `padding` | - | left as the guest set it |
//!
//! **Writing.** KVM's `record_steal_time` runs before each entry that follows a reschedule. Its
//! order:
//!
//! 1. `preempted` = 0;
//! 2. `version` becomes odd (an odd value that the guest left is made even first);
//! 3. `steal` += the run delay of the vCPU thread since the last update;
//! 4. `version` becomes even.
//!
//! `kvm_steal_time_set_preempted` runs when the vCPU thread is scheduled out. It stores `preempted`
//! = 1, alone, if the thread was preempted rather than blocked. `version` does not guard that byte.
//!
//! **Reading.** `steal` is valid if `version` was even before the read and is the same after it;
//! else the reader repeats. `preempted` is a hint: it may change as soon as it has been read.

use core::mem::{align_of, offset_of, size_of};
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

/// `KVM_VCPU_PREEMPTED`, the value the host stores into [`StealTime::preempted`].
///
/// A guest compares the whole byte with 0, as the check in Linux does.
pub const PREEMPTED: u8 = 1;

/// `struct kvm_steal_time`: the record of one vCPU, as it lies in guest memory.
///
/// Guest and host access it at the same time, so every field is an atomic. A shared reference to
/// the record is sound whatever the other end writes.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct StealTime {
    /// Time (ns) that this vCPU wanted to run and could not. It never decreases. Only differences
    /// count.
    pub steal: AtomicU64,
    /// Odd while the host updates `steal`. Each update adds 2; the value wraps around.
    pub version: AtomicU32,
    /// Reserved by KVM; always 0 today.
    pub flags: AtomicU32,
    /// Not 0 while the host has this vCPU off its CPU although it wants to run.
    pub preempted: AtomicU8,
    /// Not used. The host leaves it as the guest set it.
    pub padding: [AtomicU8; 47],
}

impl StealTime {
    /// Returns a record of zeros, as the guest must register it.
    pub const fn new() -> Self {
        Self {
            steal: AtomicU64::new(0),
            version: AtomicU32::new(0),
            flags: AtomicU32::new(0),
            preempted: AtomicU8::new(0),
            padding: [const { AtomicU8::new(0) }; 47],
        }
    }

    /// Copies the record, field by field. The copy is not a snapshot if the other end writes
    /// meanwhile.
    pub fn bytes(&self) -> [u8; size_of::<Self>()] {
        let mut bytes = [0; size_of::<Self>()];
        let mut put =
            |offset: usize, field: &[u8]| bytes[offset..offset + field.len()].copy_from_slice(field);
        put(offset_of!(Self, steal), &self.steal.load(Ordering::Acquire).to_le_bytes());
        put(offset_of!(Self, version), &self.version.load(Ordering::Acquire).to_le_bytes());
        put(offset_of!(Self, flags), &self.flags.load(Ordering::Acquire).to_le_bytes());
        put(offset_of!(Self, preempted), &[self.preempted.load(Ordering::Acquire)]);
        for (offset, byte) in (offset_of!(Self, padding)..).zip(&self.padding) {
            put(offset, &[byte.load(Ordering::Relaxed)]);
        }
        bytes
    }
}

impl Default for StealTime {
    fn default() -> Self {
        Self::new()
    }
}

const _: () = {
    assert!(size_of::<StealTime>() == 64);
    assert!(align_of::<StealTime>() == 64);
    assert!(offset_of!(StealTime, steal) == 0);
    assert!(offset_of!(StealTime, version) == 8);
    assert!(offset_of!(StealTime, flags) == 12);
    assert!(offset_of!(StealTime, preempted) == 16);
    assert!(offset_of!(StealTime, padding) == 17);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_the_record_as_it_lies_in_memory() {
        let record = StealTime {
            steal: 0x0807_0605_0403_0201.into(),
            version: 0x0c0b_0a09.into(),
            flags: 0x100f_0e0d.into(),
            preempted: 17.into(),
            padding: core::array::from_fn(|place| AtomicU8::new(u8::try_from(18 + place).unwrap())),
        };
        let expected: [u8; 64] = core::array::from_fn(|place| u8::try_from(1 + place).unwrap());
        assert_eq!(record.bytes(), expected);
    }
}
