//! Finds the kernel's offsets that the program needs, in the kernel's BTF.
//!
//! The program reads seven fields of five structs, and attaches to each tracepoint by the ID of a
//! typedef. The BTF holds some 126,000 types. A general parser builds all of them, in 8 to 13 ms.
//! This scan walks once over the types in place, compares only the names of structs and typedefs,
//! and stops at the last one that it needs. It takes 0.1 ms, since the scheduler's types come
//! first.
//!
//! Format: Linux `Documentation/bpf/btf.rst`. The scan reads only inside the given bytes, whatever
//! they contain.

use std::fs::{self, File};
use std::io;
use std::ops::Deref;
use std::os::fd::AsFd;

use super::error::BpfError;
use super::mapping::Mapping;

/// The file that holds the kernel's BTF.
pub(super) const PATH: &str = "/sys/kernel/btf/vmlinux";

/// The typedefs of our tracepoints' arguments in BTF.
pub(super) const TRACEPOINTS: [&str; 3] =
    ["btf_trace_sched_switch", "btf_trace_x86_fpu_regs_activated", "btf_trace_hrtimer_expire_entry"];

/// A kernel struct, with the fields that the program reads.
#[derive(Debug)]
pub(super) struct WantedStruct {
    pub(super) name: &'static str,
    pub(super) fields: &'static [WantedField],
    /// Whether the program works without it. The program tests that the fields exist before it
    /// reads them.
    optional: bool,
}

/// A field, with the part of its type that relocation compares.
#[derive(Clone, Copy, Debug)]
pub(super) struct WantedField {
    pub(super) name: &'static str,
    pub(super) kind: FieldKind,
}

/// The type of a [`WantedField`].
#[derive(Clone, Copy, Debug)]
pub(super) enum FieldKind {
    /// An unsigned integer of this many bytes.
    Int(u32),
    /// This struct of [`WANTED`], embedded.
    Struct(&'static str),
    /// A pointer to a struct.
    Pointer,
}

const fn field(name: &'static str, kind: FieldKind) -> WantedField {
    WantedField { name, kind }
}

/// The structs that the program reads: those marked `KERNEL_TYPE` in `steal_time.bpf.c`.
pub(super) const WANTED: [WantedStruct; 5] = [
    WantedStruct {
        name: "task_struct",
        fields: &[
            field("__state", FieldKind::Int(4)),
            field("se", FieldKind::Struct("sched_entity")),
            field("sched_info", FieldKind::Struct("sched_info")),
        ],
        optional: false,
    },
    WantedStruct {
        name: "sched_info",
        fields: &[field("run_delay", FieldKind::Int(8)), field("last_queued", FieldKind::Int(8))],
        optional: false,
    },
    // A path from the task to the clock of its run queue exists only with CONFIG_FAIR_GROUP_SCHED
    WantedStruct { name: "sched_entity", fields: &[field("cfs_rq", FieldKind::Pointer)], optional: true },
    WantedStruct { name: "cfs_rq", fields: &[field("rq", FieldKind::Pointer)], optional: true },
    WantedStruct { name: "rq", fields: &[field("clock", FieldKind::Int(8))], optional: true },
];

/// The result of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KernelLayout {
    /// The BTF IDs of [`TRACEPOINTS`], by which programs attach to them.
    pub(super) tracepoints: [u32; TRACEPOINTS.len()],
    /// For each of [`WANTED`], the offsets of its fields (bytes), or `None` if this kernel has no
    /// such struct.
    pub(super) offsets: [Option<Vec<u32>>; WANTED.len()],
}

/// A BTF is malformed, or lacks a type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BtfError {
    #[error("malformed BTF at byte {at}")]
    Malformed { at: usize },
    #[error("no type {what} in the BTF")]
    Missing { what: &'static str },
}

impl KernelLayout {
    /// Scans the BTF of the running kernel.
    pub(super) fn of_running_kernel() -> Result<Self, BpfError> {
        let btf = open().map_err(BpfError::no_kernel_btf)?;
        Self::scan(&btf).map_err(|error| BpfError::kernel_btf(error.into()))
    }

    /// Scans the bytes of a BTF.
    pub(super) fn scan(btf: &[u8]) -> Result<Self, BtfError> {
        let Sections { types, strings, types_at } = Sections::find(btf)?;
        let mut offsets = [const { None }; WANTED.len()];
        let mut typedefs = [None; TRACEPOINTS.len()];
        let mut missing = WANTED.len() + TRACEPOINTS.len();

        let mut rest = types;
        for id in 1.. {
            if rest.is_empty() || missing == 0 {
                break;
            }
            let at = types_at + (types.len() - rest.len());
            let Some((record, after)) = Type::split(rest) else { return Err(BtfError::Malformed { at }) };
            rest = after;
            match record.kind {
                KIND_STRUCT => {
                    for (wanted, found) in WANTED.iter().zip(&mut offsets) {
                        if found.is_none() && is_named(strings, record.name, wanted.name) {
                            *found = record.offsets_of(wanted.fields, strings);
                            missing -= usize::from(found.is_some());
                        }
                    }
                }
                KIND_TYPEDEF => {
                    for (name, found) in TRACEPOINTS.iter().zip(&mut typedefs) {
                        if found.is_none() && is_named(strings, record.name, name) {
                            *found = Some(id);
                            missing -= 1;
                        }
                    }
                }
                _ => {}
            }
        }

        for (wanted, found) in WANTED.iter().zip(&offsets) {
            if found.is_none() && !wanted.optional {
                return Err(BtfError::Missing { what: wanted.name });
            }
        }
        let mut tracepoints = [0; TRACEPOINTS.len()];
        for ((what, found), id) in TRACEPOINTS.iter().zip(typedefs).zip(&mut tracepoints) {
            *id = found.ok_or(BtfError::Missing { what })?;
        }
        Ok(Self { tracepoints, offsets })
    }
}

/// Opens the kernel's BTF: maps it if the kernel supports that (Linux 6.16), and reads it
/// otherwise.
fn open() -> io::Result<Box<dyn Deref<Target = [u8]>>> {
    let file = File::open(PATH)?;
    let size = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    match Mapping::of_constant_file(file.as_fd(), size) {
        Ok(mapping) => Ok(Box::new(mapping)),
        Err(_) => Ok(Box::new(fs::read(PATH)?)),
    }
}

/// The two sections of a BTF.
struct Sections<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Offset of `types` in the BTF (bytes), for messages.
    types_at: usize,
}

impl<'a> Sections<'a> {
    /// Finds the sections by `struct btf_header`: u16 magic, u8 version, u8 flags, then five u32:
    /// length of the header, and offset after the header and length of the types and of the
    /// strings.
    fn find(btf: &'a [u8]) -> Result<Self, BtfError> {
        const MAGIC: u16 = 0xeb9f;
        if btf.get(..2) != Some(&MAGIC.to_ne_bytes()) {
            return Err(BtfError::Malformed { at: 0 });
        }
        let section = |field: usize| {
            let start = usize_at(btf, 4)?.checked_add(usize_at(btf, field)?)?;
            let end = start.checked_add(usize_at(btf, field + 4)?)?;
            Some((start, btf.get(start..end)?))
        };
        let (types_at, types) = section(8).ok_or(BtfError::Malformed { at: 8 })?;
        let (_, strings) = section(16).ok_or(BtfError::Malformed { at: 16 })?;
        Ok(Self { types, strings, types_at })
    }
}

const KIND_STRUCT: u32 = 4;
const KIND_TYPEDEF: u32 = 8;

/// A record of the type section: `struct btf_type`, and the bytes that its kind adds.
struct Type<'a> {
    /// Offset of the name in the string section.
    name: usize,
    kind: u32,
    /// The kind flag of a struct: the upper byte of each member's offset is the width of a bit
    /// field.
    has_bitfields: bool,
    added: &'a [u8],
}

impl<'a> Type<'a> {
    /// Splits off the first record. Returns it and the bytes after it, or `None` if it is
    /// malformed.
    fn split(types: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let name = usize_at(types, 0)?;
        let info = u32_at(types, 4)?;
        let types = types.get(12..)?;
        let kind = info >> 24 & 0x1f;
        let count = (info & 0xffff) as usize;
        let added = match kind {
            // Pointer, forward, typedef, volatile, const, restrict, function, float, type tag
            2 | 7..=12 | 16 | 18 => 0,
            // Integer, variable, declaration tag
            1 | 14 | 17 => 4,
            // Array
            3 => 12,
            // Struct, union, data section, 64-bit enum
            KIND_STRUCT | 5 | 15 | 19 => 12 * count,
            // Enum, prototype
            6 | 13 => 8 * count,
            _ => return None,
        };
        let (added, rest) = types.split_at_checked(added)?;
        Some((Self { name, kind, has_bitfields: info >> 31 == 1, added }, rest))
    }

    /// Returns the offsets of `fields` (bytes), or `None` if one is missing, as in another struct
    /// of the same name.
    fn offsets_of(&self, fields: &[WantedField], strings: &[u8]) -> Option<Vec<u32>> {
        fields.iter().map(|field| self.offset_of(field.name, strings)).collect()
    }

    /// Returns the offset of a field (bytes), by `struct btf_member`: name, type, offset in bits.
    fn offset_of(&self, field: &str, strings: &[u8]) -> Option<u32> {
        let member = self
            .added
            .chunks_exact(12)
            .find(|member| usize_at(member, 0).is_some_and(|name| is_named(strings, name, field)))?;
        let bits = u32_at(member, 8)?;
        Some(if self.has_bitfields { bits & 0xff_ffff } else { bits } / 8)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_ne_bytes)
}

fn usize_at(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u32_at(bytes, at)?).ok()
}

/// Whether the string at offset `at` equals `name`.
fn is_named(strings: &[u8], at: usize, name: &str) -> bool {
    strings
        .get(at..)
        .and_then(|string| string.strip_prefix(name.as_bytes()))
        .is_some_and(|end| end.first() == Some(&0))
}
