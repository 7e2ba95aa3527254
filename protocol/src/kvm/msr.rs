//! The steal-time MSR: how a vCPU registers its record.
//!
//! | bits | meaning |
//! |---|---|
//! | 0 | enable: the host publishes into the record |
//! | 1 to 5 | reserved: a write that sets one raises #GP and changes nothing |
//! | 6 to 63 | guest physical address of the record, 64-byte aligned |
//!
//! The register belongs to one vCPU. It is 0 after INIT and after a reset, and reads back as
//! written.

use core::fmt;

/// `MSR_KVM_STEAL_TIME`, the number of the register.
pub const MSR_STEAL_TIME: u32 = 0x4b56_4d03;

/// Bit 0, `KVM_MSR_ENABLED`: publish into the record.
pub const MSR_ENABLE: u64 = 1;

/// Bits 1 to 5, `KVM_STEAL_RESERVED_MASK`: must be 0.
pub const MSR_RESERVED: u64 = 0x3e;

/// A value of [`MSR_STEAL_TIME`], decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registration {
    /// Bit 0 is clear: the host writes nothing.
    Off,
    /// The host publishes into the record at this guest physical address.
    ///
    /// The address need not be RAM: KVM accepts it, and skips every update of a record outside RAM.
    At {
        /// Guest physical address of the record, a multiple of 64.
        gpa: u64,
    },
}

/// The error of a value with reserved bits: WRMSR must raise #GP and keep the earlier value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReservedBits {
    /// The refused value.
    pub value: u64,
}

impl fmt::Display for ReservedBits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Steal-time MSR: value {:#x} sets reserved bits (bits 1 to 5 must be 0)", self.value)
    }
}

impl core::error::Error for ReservedBits {}

impl Registration {
    /// Decodes a value that a guest writes to the MSR.
    ///
    /// # Errors
    /// [`ReservedBits`] if one of bits 1 to 5 is set, whether or not bit 0 is.
    pub const fn from_msr(value: u64) -> Result<Self, ReservedBits> {
        if value & MSR_RESERVED != 0 {
            Err(ReservedBits { value })
        } else if value & MSR_ENABLE == 0 {
            Ok(Self::Off)
        } else {
            Ok(Self::At { gpa: value & !(MSR_ENABLE | MSR_RESERVED) })
        }
    }

    /// Encodes the value that a guest writes for this registration.
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
