//! How our payload says that it is ours, and how a vCPU of it is started.
//!
//! The payload is a PVH kernel: anything that boots one (QEMU's `-kernel`, our monitor) enters it at its 32-bit
//! entry with one vCPU, and it starts the others by INIT and SIPI. A monitor that knows it can do better. The ELF
//! file carries a second note, owner [`NOTE_OWNER`], type [`NOTE_TYPE`], that holds a [`Note`]. With it the monitor
//! starts every vCPU at once, and finds the memory that the payload reports into.
//!
//! **Direct start.** A vCPU enters at [`Note::entry`] with
//!
//! - long mode on, paging on, the first 4 GiB mapped to themselves;
//! - CPL 0, flat segments, interrupts off, no stack;
//! - `RDI` = the vCPU's index, which is its APIC id; `RSI` = the GPA of the PVH `hvm_start_info`, the same for all.
//!
//! The payload brings its own page tables, descriptor tables and stacks. The command line that `hvm_start_info`
//! names carries [`crate::words::Boot`] with `start=direct`, so that the payload does not start the vCPUs again.

/// Owner of our ELF note.
pub const NOTE_OWNER: &str = "vmm";

/// Type of our ELF note.
pub const NOTE_TYPE: u32 = 1;

/// Version of everything in [`crate::payload`], [`crate::words`] and [`crate::report`]. The monitor refuses others.
pub const ABI_VERSION: u64 = 5;

/// The note's 24 bytes, little endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note {
    /// [`ABI_VERSION`] of the payload.
    pub abi: u64,
    /// Guest physical address where directly started vCPUs enter.
    pub entry: u64,
    /// Guest physical address of the [`crate::report::Report`].
    pub report: u64,
}

impl Note {
    /// Reads the note's descriptor, or `None` if it has another size.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (words, []) = bytes.as_chunks::<8>() else { return None };
        let [abi, entry, report] = *words else { return None };
        let [abi, entry, report] = [abi, entry, report].map(u64::from_le_bytes);
        Some(Self { abi, entry, report })
    }
}

/// Where the payload is linked. Both ends of the range are 2 MiB aligned.
///
/// The first 2 MiB hold what only CPL 0 may touch: its code, descriptor tables, page tables and stacks. The rest
/// is open to CPL 3.
pub const SUPERVISOR: core::ops::Range<u64> = 0x20_0000..0x40_0000;

/// Where in [`SUPERVISOR`] the tables lie that the processor reads: page tables, IDT, GDTs, TSSs.
pub const TABLES: u64 = SUPERVISOR.start + 0x1_0000;

/// Where the payload puts the real-mode code that its APs begin in. SIPI's vector is this address over 4096.
pub const TRAMPOLINE: u32 = 0x8000;

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
