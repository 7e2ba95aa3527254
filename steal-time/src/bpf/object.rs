//! The committed objects, and their relocation for the running kernel.
//!
//! Both objects are part of this binary. `aya-obj` parses an object and applies its relocations:
//! the offsets of kernel fields (CO-RE), then the descriptors of the maps. For CO-RE it compares
//! the program's types with a BTF, and would search all of the kernel's types for each of them. It
//! gets a small BTF instead, with the five structs that the program reads (`btf_writer.rs`). The
//! classic object reads no kernel fields.

use std::collections::HashSet;
use std::error::Error;
use std::os::fd::{AsRawFd, BorrowedFd};

use aya_obj::btf::{Btf, BtfFeatures};
use aya_obj::generated::bpf_map_type;
use aya_obj::{Map, Object};

use super::btf_writer::BtfWriter;
use super::kernel_btf::KernelLayout;
use super::syscall::{Hook, Info, NewMap, NewProgram};

/// Aligns an object's bytes for its parser.
#[repr(C, align(8))]
pub(super) struct Aligned<T: ?Sized>(pub(super) T);

pub(super) static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!("../../bpf/steal_time.bpf.o"));

pub(super) static CLASSIC_OBJECT: &Aligned<[u8]> =
    &Aligned(*include_bytes!("../../bpf/steal_time_classic.bpf.o"));

/// The task storage that holds a thread's vCPU.
pub(super) const VCPU_OF_TASK: &str = "vcpu_of_task";
/// The classic object's hash from thread ID to vCPU.
pub(super) const VCPU_OF_THREAD: &str = "vcpu_of_thread";
/// The array of [`super::Slot`]s.
pub(super) const SLOTS: &str = "slots";
/// The array of pages that replace guest pages.
pub(super) const PAGES: &str = "pages";
/// The per-CPU mark of a task that sends INIT in another VM.
pub(super) const STRANGER: &str = "stranger";
/// The program at `sched_switch`.
pub(super) const SWITCH: &str = "steal_switch";
/// The program at `x86_fpu_regs_activated` and `hrtimer_expire_entry`.
pub(super) const HEAL: &str = "steal_heal";
/// The program at `kvm_apic_ipi`.
pub(super) const IPI: &str = "steal_ipi";
/// The program at `kvm_apic_accept_irq`.
pub(super) const INIT: &str = "steal_init";
/// The classic object's program at `sched_switch`.
pub(super) const CLASSIC_SWITCH: &str = "classic_switch";
/// The classic object's program at `x86_fpu_regs_activated` and `hrtimer_expire_entry`.
pub(super) const CLASSIC_HEAL: &str = "classic_heal";
/// The classic object's program that returns the current thread's ID.
pub(super) const CLASSIC_TID: &str = "classic_tid";

/// The object is defective, or does not fit the kernel.
pub(super) type ObjectError = Box<dyn Error + Send + Sync>;

/// A parsed object.
pub(super) struct BpfObject(pub(super) Object);

impl BpfObject {
    /// Parses the object of the full program, and relocates its kernel fields.
    pub(super) fn for_kernel(layout: &KernelLayout) -> Result<Self, ObjectError> {
        let mut object = Object::parse(&OBJECT.0)?;
        object.relocate_btf(&Btf::parse(&BtfWriter::describing(layout).into_bytes(), object.endianness)?)?;
        Ok(Self(object))
    }

    /// Parses the classic object, which fits each kernel with its tracepoints.
    pub(super) fn classic() -> Result<Self, ObjectError> {
        Ok(Self(Object::parse(&CLASSIC_OBJECT.0)?))
    }

    /// Returns the BTF of maps and programs, as `BPF_BTF_LOAD` takes it.
    pub(super) fn btf(&mut self) -> Result<Vec<u8>, ObjectError> {
        // Each kernel that can run the programs has all of these: they are in Linux 5.12
        let features = BtfFeatures::new(true, true, true, true, true, true, true, true);
        let btf = self.0.fixup_and_sanitize_btf(&features)?.ok_or("no BTF in the object")?;
        Ok(btf.to_bytes())
    }

    /// Returns the parameters to create map `name` with `max_entries` entries.
    pub(super) fn map<'a>(
        &'a self,
        name: &'a str,
        max_entries: u32,
        btf: BorrowedFd<'a>,
    ) -> Result<NewMap<'a>, ObjectError> {
        let Some(map @ Map::Btf(definition)) = self.0.maps.get(name) else {
            return Err(format!("no map {name} in the object").into());
        };
        Ok(NewMap {
            name,
            kind: bpf_map_type::try_from(map.map_type())
                .map_err(|_| format!("map {name} of unknown type"))?,
            key_size: map.key_size(),
            value_size: map.value_size(),
            max_entries,
            flags: map.map_flags(),
            btf,
            key_type: definition.def.btf_key_type_id,
            value_type: definition.def.btf_value_type_id,
        })
    }

    /// Relocates the programs' references to maps.
    pub(super) fn relocate_maps(&mut self, maps: &[(&str, BorrowedFd<'_>)]) -> Result<(), ObjectError> {
        let definitions = self.0.maps.clone();
        let maps =
            maps.iter().filter_map(|(name, fd)| Some((*name, fd.as_raw_fd(), definitions.get(*name)?)));
        Ok(self.0.relocate_maps(maps, &HashSet::new())?)
    }

    /// Returns the parameters to load program `name` for `hook`.
    pub(super) fn program<'a>(
        &'a self,
        name: &'a str,
        hook: Hook,
        btf: BorrowedFd<'a>,
    ) -> Result<NewProgram<'a>, ObjectError> {
        let program = self.0.programs.get(name);
        let function = program.and_then(|program| self.0.functions.get(&program.function_key()));
        let function = function.ok_or_else(|| format!("no program {name} in the object"))?;
        let functions =
            Info { records: function.func_info.func_info_bytes(), record_size: function.func_info_rec_size };
        let lines =
            Info { records: function.line_info.line_info_bytes(), record_size: function.line_info_rec_size };
        Ok(NewProgram {
            name,
            instructions: &function.instructions,
            license: &self.0.license,
            hook,
            btf,
            functions,
            lines,
        })
    }
}
