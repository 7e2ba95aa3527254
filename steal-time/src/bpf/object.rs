//! The committed objects, and the first fitted to the running kernel.
//!
//! Both objects of `steal-time/bpf` are part of this binary. `aya-obj` parses one and applies its relocations: the
//! offsets of kernel fields, then the descriptors of our maps. For the first it wants a BTF to compare the program's
//! types with, and would walk all of the kernel's for each; it gets one that we make of the five structs in question.
//! The classic object reads no kernel fields.

use std::collections::HashSet;
use std::error::Error;
use std::os::fd::{AsRawFd, BorrowedFd};

use aya_obj::btf::{Btf, BtfFeatures};
use aya_obj::generated::bpf_map_type;
use aya_obj::{Map, Object};

use super::btf_writer::BtfWriter;
use super::kernel_btf::KernelLayout;
use super::syscall::{Hook, Info, NewMap, NewProgram};

/// The object's bytes, on the boundary that its parser wants.
#[repr(C, align(8))]
pub(super) struct Aligned<T: ?Sized>(pub(super) T);

pub(super) static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!("../../bpf/steal_time.bpf.o"));

pub(super) static CLASSIC_OBJECT: &Aligned<[u8]> =
    &Aligned(*include_bytes!("../../bpf/steal_time_classic.bpf.o"));

/// The name of the task storage map: a thread's vCPU.
pub(super) const VCPU_OF_TASK: &str = "vcpu_of_task";
/// The classic object's name of the hash by thread id: a thread's vCPU.
pub(super) const VCPU_OF_THREAD: &str = "vcpu_of_thread";
/// The name of the array of [`super::Slot`]s.
pub(super) const SLOTS: &str = "slots";
/// The name of the array of guest pages.
pub(super) const PAGES: &str = "pages";
/// The name of the program on `sched_switch`.
pub(super) const SWITCH: &str = "steal_switch";
/// The name of the program on `x86_fpu_regs_activated` and `hrtimer_expire_entry`.
pub(super) const HEAL: &str = "steal_heal";
/// The name of the program on `kvm_apic_ipi`.
pub(super) const IPI: &str = "steal_ipi";
/// The name of the program on `kvm_apic_accept_irq`.
pub(super) const INIT: &str = "steal_init";
/// The classic object's names of the programs on `sched_switch` and `hrtimer_expire_entry`.
pub(super) const CLASSIC_SWITCH: &str = "classic_switch";
pub(super) const CLASSIC_HEAL: &str = "classic_heal";
/// The classic object's name of the program that gives its thread's id.
pub(super) const CLASSIC_WHO: &str = "classic_who";

/// A defect of the object, or a kernel that it does not fit.
pub(super) type ObjectError = Box<dyn Error + Send + Sync>;

/// The parsed object.
pub(super) struct BpfObject(pub(super) Object);

impl BpfObject {
    /// Parses the object and sets its offsets of kernel fields.
    pub(super) fn for_kernel(layout: &KernelLayout) -> Result<Self, ObjectError> {
        let mut object = Object::parse(&OBJECT.0)?;
        object.relocate_btf(&Btf::parse(&BtfWriter::describing(layout).into_bytes(), object.endianness)?)?;
        Ok(Self(object))
    }

    /// Parses the classic object, which fits any kernel that has its tracepoints.
    pub(super) fn classic() -> Result<Self, ObjectError> {
        Ok(Self(Object::parse(&CLASSIC_OBJECT.0)?))
    }

    /// The types of maps and programs, as the kernel takes them.
    pub(super) fn btf(&mut self) -> Result<Vec<u8>, ObjectError> {
        // Whatever a kernel knows that can run the programs, which is all of this since Linux 5.12
        let features = BtfFeatures::new(true, true, true, true, true, true, true, true);
        let btf = self.0.fixup_and_sanitize_btf(&features)?.ok_or("no BTF in the object")?;
        Ok(btf.to_bytes())
    }

    /// How to create map `name`, with `max_entries` entries.
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

    /// Makes the programs refer to these maps.
    pub(super) fn relocate_maps(&mut self, maps: &[(&str, BorrowedFd<'_>)]) -> Result<(), ObjectError> {
        let definitions = self.0.maps.clone();
        let maps =
            maps.iter().filter_map(|(name, fd)| Some((*name, fd.as_raw_fd(), definitions.get(*name)?)));
        Ok(self.0.relocate_maps(maps, &HashSet::new())?)
    }

    /// How to load program `name`, for this hook.
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
