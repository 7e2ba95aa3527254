//! The MP table: describes CPUs and interrupt lines to a guest without ACPI.
//!
//! It lists one bus (ISA), one I/O APIC and each vCPU. Guests search for the floating pointer in
//! the last KiB below 640 KiB. The table grows with the vCPUs and lies in the BIOS area.
//!
//! Source: Intel `MultiProcessor` Specification 1.4.

use protocol::VcpuId;
pub(super) use protocol::payload::machine::IO_APIC;
use protocol::payload::machine::LAPIC;

use super::low_memory::{MP_POINTER, MP_TABLE};
use crate::error::VmmError;
use crate::memory::Ram;

const REVISION_1_4: u8 = 4;
const LAPIC_VERSION: u8 = 0x14;
const IO_APIC_VERSION: u8 = 0x11;
/// CPU flag: the CPU is usable.
const CPU_ENABLED: u8 = 1;
/// CPU flag: the CPU is the boot processor.
const CPU_BOOT: u8 = 2;
const ISA: u8 = 0;
const ISA_LINES: u8 = 16;
/// Destination of a local interrupt: all local APICs.
const EVERY_LAPIC: u8 = 0xff;

/// Interrupt type: vectored by the I/O APIC.
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;

/// Writes the floating pointer and the table of a guest with `vcpus` vCPUs.
pub(super) fn write(ram: &Ram, vcpus: usize) -> Result<(), VmmError> {
    ram.write(MP_POINTER.start(), &pointer())?;
    ram.write(MP_TABLE.start(), &table(vcpus))
}

fn pointer() -> [u8; 16] {
    let mut pointer = [0; 16];
    pointer[..4].copy_from_slice(b"_MP_");
    // 32 bits suffice: the table lies below 1 MiB
    pointer[4..8].copy_from_slice(&MP_TABLE.start().to_le_bytes()[..4]);
    pointer[8] = 1; // length, in units of 16 bytes
    pointer[9] = REVISION_1_4;
    pointer[10] = checksum(&pointer);
    pointer
}

fn table(vcpus: usize) -> Vec<u8> {
    // APIC ids must be unique: the I/O APIC has the one after the last vCPU.
    let io_apic_id = u8::try_from(vcpus).unwrap_or(u8::MAX);
    let mut entries = Vec::new();
    let mut count: u16 = 0;
    let mut add = |entry: &[u8]| {
        entries.extend_from_slice(entry);
        count += 1;
    };
    for vcpu in VcpuId::first(vcpus) {
        let flags = CPU_ENABLED | if vcpu == VcpuId::BOOT { CPU_BOOT } else { 0 };
        let mut cpu = [0; 20];
        cpu[..4].copy_from_slice(&[0, vcpu.apic_id(), LAPIC_VERSION, flags]);
        add(&cpu);
    }
    add(&[1, ISA, b'I', b'S', b'A', b' ', b' ', b' ']);
    let [a, b, c, d] = IO_APIC.to_le_bytes();
    add(&[2, io_apic_id, IO_APIC_VERSION, 1, a, b, c, d]);
    for line in 0..ISA_LINES {
        // One to one, as in KVM's default routing, also for the timer's line 0.
        add(&[3, INT, 0, 0, ISA, line, io_apic_id, line]);
    }
    add(&[4, EXT_INT, 0, 0, ISA, 0, EVERY_LAPIC, 0]);
    add(&[4, NMI, 0, 0, ISA, 0, EVERY_LAPIC, 1]);

    let mut table = vec![0; 44];
    let length = u16::try_from(table.len() + entries.len()).unwrap_or(u16::MAX);
    table[..4].copy_from_slice(b"PCMP");
    table[4..6].copy_from_slice(&length.to_le_bytes());
    table[6] = REVISION_1_4;
    table[8..16].copy_from_slice(b"VMM     ");
    table[16..28].copy_from_slice(b"STEAL-TIME  ");
    table[34..36].copy_from_slice(&count.to_le_bytes());
    table[36..40].copy_from_slice(&LAPIC.to_le_bytes());
    table.extend_from_slice(&entries);
    table[7] = checksum(&table);
    table
}

/// Returns the byte that makes the sum of all bytes 0.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn checksums_are_0_and_the_length_is_that_of_the_table() {
        for vcpus in [1, 4, 255] {
            let table = table(vcpus);
            assert_eq!(sum(&table), 0);
            assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());
            assert!(MP_TABLE.start() + table.len() as u64 <= MP_TABLE.range.end);
        }
        assert_eq!(sum(&pointer()), 0);
    }

    #[test]
    fn each_vcpu_has_one_entry_and_only_the_first_is_the_boot_processor() {
        let table = table(3);
        let cpus: Vec<_> = table[44..].chunks_exact(20).take(3).map(|cpu| [cpu[0], cpu[1], cpu[3]]).collect();
        assert_eq!(cpus, [[0, 0, 3], [0, 1, 1], [0, 2, 1]]);
    }
}
