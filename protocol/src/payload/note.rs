//! The ELF note: how a monitor recognises the payload, and how it starts a vCPU of it.
//!
//! The payload is a PVH kernel. QEMU's `-kernel` enters it at its 32-bit entry with one vCPU, and
//! the payload starts the others by INIT and SIPI. A monitor that reads a second ELF note (owner
//! [`NOTE_OWNER`], type [`NOTE_TYPE`], descriptor [`Note`]) can start all vCPUs at once. The note
//! also locates the report.
//!
//! **Direct start.** A vCPU enters at [`Note::entry`] with
//!
//! - long mode on, paging on, the first 4 GiB mapped to themselves;
//! - CPL 0, flat segments, interrupts off, no stack;
//! - `RDI` = the vCPU's index, which is its APIC id;
//! - `RSI` = the GPA of the PVH `hvm_start_info`, the same for all vCPUs.
//!
//! The payload brings its own page tables, descriptor tables and stacks. The command line carries
//! the parameter `start=direct` ([`super::params::Boot`]), so that the payload does not start the
//! vCPUs again.

/// Owner (name) of the ELF note.
pub const NOTE_OWNER: &str = "vmm";

/// Type of the ELF note.
pub const NOTE_TYPE: u32 = 1;

/// Version of everything in [`crate::payload`]. A monitor refuses a payload of another version.
pub const ABI_VERSION: u64 = 7;

/// The descriptor of the note: three little-endian 64-bit words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note {
    /// The [`ABI_VERSION`] that the payload was built with.
    pub abi: u64,
    /// Guest physical address at which a directly started vCPU enters.
    pub entry: u64,
    /// Guest physical address of the [`super::report::Report`].
    pub report: u64,
}

impl Note {
    /// Decodes the descriptor. Returns `None` if `bytes` is not 24 bytes long.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (words, []) = bytes.as_chunks::<8>() else { return None };
        let [abi, entry, report] = *words else { return None };
        let [abi, entry, report] = [abi, entry, report].map(u64::from_le_bytes);
        Some(Self { abi, entry, report })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn note_of_another_size_is_none() {
        let mut bytes = [0; 24];
        bytes[0] = 1;
        bytes[8..12].copy_from_slice(&[0x00, 0x10, 0x20, 0x00]);
        assert_eq!(Note::from_bytes(&bytes), Some(Note { abi: 1, entry: 0x20_1000, report: 0 }));
        assert_eq!(Note::from_bytes(&bytes[..23]), None);
        assert_eq!(Note::from_bytes(&[0; 32]), None);
    }
}
