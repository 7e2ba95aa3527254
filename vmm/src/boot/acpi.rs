//! ACPI tables: describe CPUs, serial port and reset to a guest with ACPI.
//!
//! The platform is hardware-reduced: it has no power management, no system control interrupt and
//! none of a PC's legacy timers. Such a guest probes no legacy devices. The tables therefore
//! describe COM1 with its interrupt line, and the reset as a write to the keyboard controller.
//!
//! A guest without ACPI finds the same CPUs in the MP table.
//!
//! Source: ACPI specification 6.5.

use acpi_tables::Aml;
use acpi_tables::aml::{Device, EISAName, IO, Interrupt, Name, ResourceTemplate};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use protocol::VcpuId;
use protocol::payload::machine::{COM1, COM1_IRQ, I8042_COMMAND, I8042_RESET, LAPIC};

use super::low_memory::ACPI;
use super::mp_table::IO_APIC;
use crate::error::VmmError;
use crate::memory::Ram;

/// GPA of the RSDP. The other tables follow it.
const TABLES: u64 = ACPI.start();
/// Alignment of each table (bytes).
const ALIGNMENT: u64 = 64;

const OEM: [u8; 6] = *b"VMM   ";
const OEM_TABLE: [u8; 8] = *b"STEALTIM";
const REVISION: u32 = 1;

/// IA-PC boot architecture flags: no VGA, no MSI (the machine has no PCI), no CMOS clock.
const BOOT_ARCHITECTURE: u16 = 1 << 2 | 1 << 3 | 1 << 5;

/// Writes the tables of a guest with `vcpus` vCPUs. Returns the GPA of the RSDP.
///
/// # Errors
/// [`VmmError::OutsideMemory`] with less than 1 MiB of RAM.
pub fn write(ram: &Ram, vcpus: usize) -> Result<u64, VmmError> {
    let mut next = TABLES + ALIGNMENT;
    let mut place = |table: &[u8]| {
        let gpa = next;
        next = (gpa + table.len() as u64).next_multiple_of(ALIGNMENT);
        ram.write(gpa, table).map(|()| gpa)
    };
    let dsdt = place(&dsdt())?;
    let fadt = place(&fadt(dsdt))?;
    let madt = place(&madt(vcpus))?;
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = place(&bytes(&xsdt))?;
    ram.write(TABLES, &bytes(&Rsdp::new(OEM, xsdt)))?;
    Ok(TABLES)
}

/// Returns the DSDT, which describes COM1.
fn dsdt() -> Vec<u8> {
    let id = Name::new("_HID".into(), &EISAName::new("PNP0501"));
    let unit = Name::new("_UID".into(), &0_u8);
    // Edge triggered, active high, exclusive.
    let line = Interrupt::new(true, true, false, false, COM1_IRQ);
    let ports = IO::new(COM1, COM1, 1, 8);
    let resources = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&line, &ports]));
    let serial = Device::new("_SB_.COM1".into(), vec![&id, &unit, &resources]);
    let mut table = Sdt::new(*b"DSDT", 36, 2, OEM, OEM_TABLE, REVISION);
    table.append_slice(&bytes(&serial));
    table.as_slice().to_vec()
}

fn fadt(dsdt: u64) -> Vec<u8> {
    let mut table = FADTBuilder::new(OEM, OEM_TABLE, REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    table.iapc_boot_arch = BOOT_ARCHITECTURE.into();
    table.reset_reg = GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, I8042_COMMAND.into());
    table.reset_value = I8042_RESET;
    bytes(&table.finalize())
}

fn madt(vcpus: usize) -> Vec<u8> {
    let mut table = MADT::new(OEM, OEM_TABLE, REVISION, LocalInterruptController::Address(LAPIC));
    for vcpu in VcpuId::first(vcpus) {
        let id = vcpu.apic_id();
        table.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    let io_apic_id = u8::try_from(vcpus).unwrap_or(u8::MAX);
    table.add_structure(IoApic::new(io_apic_id, IO_APIC, 0));
    bytes(&table)
}

/// Returns the bytes of `table`.
fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn length(table: &[u8]) -> usize {
        u32::from_le_bytes(*table[4..].first_chunk().unwrap()) as usize
    }

    #[test]
    fn every_table_has_its_length_and_a_valid_checksum() {
        for (signature, table) in
            [(*b"DSDT", dsdt()), (*b"FACP", fadt(0x1000)), (*b"APIC", madt(3)), (*b"APIC", madt(255))]
        {
            assert_eq!(table[..4], signature);
            assert_eq!((length(&table), sum(&table)), (table.len(), 0));
        }
        let rsdp = bytes(&Rsdp::new(OEM, 0x1000));
        assert_eq!((&rsdp[..8], rsdp.len()), (&b"RSD PTR "[..], 36));
        assert_eq!((sum(&rsdp[..20]), sum(&rsdp)), (0, 0));
    }

    #[test]
    fn tables_of_the_largest_guest_fit_their_area() {
        let ram = Ram::new(1).unwrap();
        assert_eq!(write(&ram, 255).unwrap(), TABLES);
        let all = [dsdt(), fadt(0), madt(255)].map(|table| table.len() as u64 + ALIGNMENT);
        assert!(TABLES + all.iter().sum::<u64>() + 2 * ALIGNMENT < ACPI.range.end);
    }

    #[test]
    fn each_vcpu_has_a_local_apic_and_all_share_one_io_apic() {
        let table = madt(3);
        let apics: Vec<_> = table[44..44 + 24].chunks(8).map(|apic| [apic[0], apic[3], apic[4]]).collect();
        assert_eq!(apics, [[0, 0, 1], [0, 1, 1], [0, 2, 1]]);
        assert_eq!(table[44 + 24..44 + 27], [1, 12, 3]);
        assert_eq!(table.len(), 44 + 24 + 12);
    }

    #[test]
    fn reset_register_is_the_keyboard_controller() {
        let table = fadt(0x1234);
        // ACPI 6.5, table 5.9: RESET_REG at 116, RESET_VALUE at 128, X_DSDT at 140.
        assert_eq!(table[116..128], [1, 8, 0, 1, 0x64, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!((table[128], table[140..148].to_vec()), (0xfe, 0x1234_u64.to_le_bytes().to_vec()));
        let flags = u32::from_le_bytes(*table[112..].first_chunk().unwrap());
        assert_eq!(flags & (1 << 20 | 1 << 10), 1 << 20 | 1 << 10);
    }
}
