//! The steal-time record: the one word that host and guest share about a vCPU that is not running.
//!
//! A guest registers one record per vCPU by writing its guest physical address, with bit 0 set, to
//! [`MSR_STEAL_TIME`]. From then on the host may write the record at any time, until a value with bit 0 clear is
//! written.
//!
//! | offset | bytes | field | who writes | meaning |
//! |---|---|---|---|---|
//! | 0 | 8 | steal | host | ns this vCPU wanted to run and could not |
//! | 8 | 4 | version | host | odd while steal is being written |
//! | 12 | 4 | flags | host | 0 |
//! | 16 | 1 | preempted | host | not 0: the host took this vCPU off its CPU |
//! | 17 | 47 | padding | nobody | left as the guest set it |
//!
//! Source: the KVM ABI (Linux `Documentation/virt/kvm/x86/msr.rst`, `MSR_KVM_STEAL_TIME`; layout in
//! `arch/x86/include/uapi/asm/kvm_para.h`).

use core::fmt;
use core::mem::{align_of, offset_of, size_of};
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

/// The steal-time MSR, `MSR_KVM_STEAL_TIME`.
pub const MSR_STEAL_TIME: u32 = 0x4b56_4d03;

/// Bit 0 of the MSR: publish into the record.
pub const MSR_ENABLE: u64 = 1;

/// Bits 1 to 5 of the MSR: reserved. A write that sets one faults, and the earlier value stays.
pub const MSR_RESERVED: u64 = 0x3e;

/// What the host stores into [`StealTime::preempted`] when it takes the vCPU off its CPU (`KVM_VCPU_PREEMPTED`).
///
/// A guest tests the whole byte against 0, as Linux' assembly check does.
pub const PREEMPTED: u8 = 1;

/// The CPUID leaf that carries the hypervisor's signature, and in EAX the last hypervisor leaf.
pub const CPUID_SIGNATURE: u32 = 0x4000_0000;

/// The CPUID leaf whose EAX carries the paravirtual features.
pub const CPUID_FEATURES: u32 = 0x4000_0001;

/// Feature bit 5, `KVM_FEATURE_STEAL_TIME`: the MSR exists.
pub const FEATURE_STEAL_TIME: u32 = 1 << 5;

/// Feature bit 9, `KVM_FEATURE_PV_TLB_FLUSH`: the guest may write bit 1 of the byte and rely on a flush.
pub const FEATURE_PV_TLB_FLUSH: u32 = 1 << 9;

/// Feature bit 13, `KVM_FEATURE_PV_SCHED_YIELD`: the guest may yield to a preempted vCPU by hypercall.
pub const FEATURE_PV_SCHED_YIELD: u32 = 1 << 13;

/// One vCPU's record, as it lies in guest memory.
///
/// Each end writes it while the other reads, so its fields are atomics: a reference to it stays sound whatever the other
/// end does.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct StealTime {
    /// Nanoseconds this vCPU wanted to run and could not. Grows; only differences mean anything.
    pub steal: AtomicU64,
    /// Odd while the host writes `steal`; grows by 2 with each update.
    pub version: AtomicU32,
    /// Always 0 today.
    pub flags: AtomicU32,
    /// Not 0 while the host has this vCPU, which wants to run, off its CPU.
    pub preempted: AtomicU8,
    /// Left as the guest set it.
    pub padding: [AtomicU8; 47],
}

impl StealTime {
    /// The record as a guest must hand it over: all zero.
    pub const fn new() -> Self {
        Self {
            steal: AtomicU64::new(0),
            version: AtomicU32::new(0),
            flags: AtomicU32::new(0),
            preempted: AtomicU8::new(0),
            padding: [const { AtomicU8::new(0) }; 47],
        }
    }

    /// All of it, word by word. Where the other end writes meanwhile it is nothing that ever was.
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

/// What a value of [`MSR_STEAL_TIME`] asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registration {
    /// Bit 0 is clear: write nothing.
    Off,
    /// Publish into the record at this guest physical address (64-byte aligned by construction).
    ///
    /// Nothing says that there is memory: KVM skips every update of a record that lies outside RAM, in silence.
    At {
        /// The record's guest physical address.
        gpa: u64,
    },
}

/// The value sets a reserved bit: the write must fault, and the earlier value stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReservedBits {
    /// The refused value.
    pub value: u64,
}

impl fmt::Display for ReservedBits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Value {:#x} of the steal-time MSR sets reserved bits (bits 1 to 5 must be 0)", self.value)
    }
}

impl core::error::Error for ReservedBits {}

impl Registration {
    /// Reads a value that a guest writes to the MSR.
    ///
    /// # Errors
    /// [`ReservedBits`] when one of bits 1 to 5 is set, whether or not bit 0 is.
    pub const fn from_msr(value: u64) -> Result<Self, ReservedBits> {
        if value & MSR_RESERVED != 0 {
            Err(ReservedBits { value })
        } else if value & MSR_ENABLE == 0 {
            Ok(Self::Off)
        } else {
            Ok(Self::At { gpa: value & !(MSR_ENABLE | MSR_RESERVED) })
        }
    }

    /// The value that asks for this registration.
    pub const fn to_msr(self) -> u64 {
        match self {
            Self::Off => 0,
            Self::At { gpa } => gpa | MSR_ENABLE,
        }
    }
}

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

    #[test]
    fn msr_value_with_enable_bit_names_the_record() {
        assert_eq!(Registration::from_msr(0x1f_0041), Ok(Registration::At { gpa: 0x1f_0040 }));
        assert_eq!(Registration::At { gpa: 0x1f_0040 }.to_msr(), 0x1f_0041);
    }

    #[test]
    fn msr_value_without_enable_bit_is_off_whatever_the_address() {
        assert_eq!(Registration::from_msr(0), Ok(Registration::Off));
        assert_eq!(Registration::from_msr(0x1f_0040), Ok(Registration::Off));
    }

    #[test]
    fn each_reserved_bit_is_refused_with_and_without_enable() {
        for bit in 1..=5 {
            for enable in [0, MSR_ENABLE] {
                let value = 0x1000 | 1 << bit | enable;
                assert_eq!(Registration::from_msr(value), Err(ReservedBits { value }));
            }
        }
    }
}
