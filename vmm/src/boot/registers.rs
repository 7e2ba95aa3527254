//! Registers of a vCPU before its first instruction.

use kvm_bindings::{KVM_MP_STATE_RUNNABLE, kvm_dtable, kvm_mp_state, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use protocol::VcpuId;
use protocol::payload::note::Note;

use super::low_memory::{BOOT_PARAMS, GDT, PAGE_TABLES, STACK_TOP, START_INFO};

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// RFLAGS with interrupts disabled: only the reserved bit 1, which is always set.
const RFLAGS: u64 = 2;

const CODE32: u16 = 0x08;
/// `__BOOT_CS` of Linux.
const CODE64: u16 = 0x10;
/// `__BOOT_DS` of Linux.
const DATA: u16 = 0x18;
const TASK: u16 = 0x20;

/// The descriptors of the selectors above, in the order of the descriptor table.
pub(super) const DESCRIPTORS: [u64; 5] =
    [0, 0x00cf_9b00_0000_ffff, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067];

/// How the vCPUs start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Every vCPU enters at the note's entry in long mode, as [`protocol::payload::note`] defines.
    Direct(Note),
    /// The boot vCPU enters at this GPA in 32-bit protected mode, and starts the others.
    Pvh(u32),
    /// The boot vCPU enters at this GPA in long mode, by the 64-bit boot protocol of Linux, and
    /// starts the others.
    Long(u64),
}

/// Sets the registers of `vcpu` for `entry`.
///
/// vCPUs that the guest starts by INIT and SIPI keep their reset state.
///
/// # Errors
/// KVM's error.
pub fn set_registers(fd: &VcpuFd, vcpu: VcpuId, entry: Entry) -> Result<(), kvm_ioctls::Error> {
    match entry {
        Entry::Direct(Note { entry, .. }) => {
            set_system_registers(fd, true)?;
            fd.set_regs(&kvm_regs {
                rip: entry,
                rdi: u64::from(vcpu.apic_id()),
                rsi: START_INFO,
                rflags: RFLAGS,
                ..kvm_regs::default()
            })?;
            fd.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE })
        }
        Entry::Pvh(entry) if vcpu == VcpuId::BOOT => {
            set_system_registers(fd, false)?;
            fd.set_regs(&kvm_regs {
                rip: entry.into(),
                rbx: START_INFO,
                rflags: RFLAGS,
                ..kvm_regs::default()
            })
        }
        Entry::Long(entry) if vcpu == VcpuId::BOOT => {
            set_system_registers(fd, true)?;
            fd.set_regs(&kvm_regs {
                rip: entry,
                rbx: START_INFO,
                rsi: BOOT_PARAMS,
                rsp: STACK_TOP,
                rflags: RFLAGS,
                ..kvm_regs::default()
            })
        }
        Entry::Pvh(_) | Entry::Long(_) => Ok(()),
    }
}

/// Sets flat segments, and long mode with the identity map or protected mode without paging.
fn set_system_registers(fd: &VcpuFd, long: bool) -> Result<(), kvm_ioctls::Error> {
    let mut system = fd.get_sregs()?;
    let data = segment(DATA, 0x3, Width::Bits32);
    system.cs = if long { segment(CODE64, 0xb, Width::Bits64) } else { segment(CODE32, 0xb, Width::Bits32) };
    (system.ds, system.es, system.fs, system.gs, system.ss) = (data, data, data, data, data);
    system.tr = kvm_segment { limit: 0x67, selector: TASK, type_: 0xb, present: 1, ..kvm_segment::default() };
    let limit = u16::try_from(size_of_val(&DESCRIPTORS) - 1).unwrap_or(u16::MAX);
    system.gdt = kvm_dtable { base: GDT, limit, ..kvm_dtable::default() };
    system.idt = kvm_dtable::default();
    system.cr0 = CR0_PE | CR0_ET;
    if long {
        system.cr0 |= CR0_NE | CR0_PG;
        system.cr3 = PAGE_TABLES;
        system.cr4 = CR4_PAE;
        system.efer = EFER_LME | EFER_LMA;
    }
    fd.set_sregs(&system)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Width {
    Bits32,
    Bits64,
}

/// Returns a flat, present segment of CPL 0.
fn segment(selector: u16, type_: u8, width: Width) -> kvm_segment {
    let long = u8::from(width == Width::Bits64);
    kvm_segment {
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        s: 1,
        g: 1,
        l: long,
        db: 1 - long,
        ..kvm_segment::default()
    }
}
