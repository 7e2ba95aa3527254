//! Writes a small BTF for relocation: the five structs that the program reads, instead of the
//! kernel's 126,000 types.
#![expect(clippy::cast_possible_truncation, reason = "a few types: no size comes near 32 bits")]

use super::kernel_btf::{FieldKind, KernelLayout, WANTED};

/// Builds a BTF. Type IDs count from 1, in the order of the calls.
pub(super) struct BtfWriter {
    types: Vec<u8>,
    strings: Vec<u8>,
}

/// A member of a struct: its name, the ID of its type, its offset (bytes).
pub(super) type Member<'a> = (&'a str, u32, u32);

impl BtfWriter {
    /// Starts a BTF without types.
    pub(super) fn new() -> Self {
        Self { types: Vec::new(), strings: vec![0] }
    }

    /// Writes the structs that the program reads, with the members that it reads, as far as this
    /// kernel has them.
    pub(super) fn describing(layout: &KernelLayout) -> Self {
        // Structs come first, in order, so a struct's ID is known before it is written
        let struct_id =
            |name| (1..).zip(&WANTED).find(|(_, wanted)| wanted.name == name).map_or(0, |(id, _)| id);
        let (int4, int8, pointer) =
            (1 + WANTED.len() as u32, 2 + WANTED.len() as u32, 3 + WANTED.len() as u32);

        let mut btf = Self::new();
        for (wanted, offsets) in WANTED.iter().zip(&layout.offsets) {
            let members: Vec<Member<'_>> = wanted
                .fields
                .iter()
                .zip(offsets.iter().flatten())
                .map(|(field, offset)| {
                    let kind = match field.kind {
                        FieldKind::Int(4) => int4,
                        FieldKind::Int(_) => int8,
                        FieldKind::Pointer => pointer,
                        FieldKind::Struct(name) => struct_id(name),
                    };
                    (field.name, kind, *offset)
                })
                .collect();
            btf.add_struct(wanted.name, &members);
        }
        btf.add_int("u32", 4);
        btf.add_int("u64", 8);
        btf.add_pointer();
        btf
    }

    /// Adds a struct. Relocation does not read its size, which stays 0.
    pub(super) fn add_struct(&mut self, name: &str, members: &[Member<'_>]) {
        let members: Vec<_> =
            members.iter().map(|&(name, kind, offset)| [self.string(name), kind, offset * 8]).collect();
        self.add(name, 4, members.len() as u32, 0, members.as_flattened());
    }

    fn add_int(&mut self, name: &str, bytes: u32) {
        self.add(name, 1, 0, bytes, &[bytes * 8]);
    }

    /// Adds a pointer to void.
    fn add_pointer(&mut self) {
        self.add("", 2, 0, 0, &[]);
    }

    /// Adds a `struct btf_type`: name, kind and count, size or type; then the words that the kind
    /// adds.
    pub(super) fn add(&mut self, name: &str, kind: u32, count: u32, size_or_type: u32, added: &[u32]) {
        let header = [self.string(name), kind << 24 | count, size_or_type];
        self.types.extend(header.iter().chain(added).copied().flat_map(u32::to_ne_bytes));
    }

    /// Adds a string. Returns its offset.
    pub(super) fn string(&mut self, string: &str) -> u32 {
        let at = self.strings.len();
        self.strings.extend(string.bytes().chain([0]));
        at as u32
    }

    /// Returns the BTF: `struct btf_header`, the types, the strings.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        const HEADER: u32 = 24;
        let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
        let mut bytes = vec![];
        bytes.extend(0xeb9f_u16.to_ne_bytes());
        bytes.extend([1, 0]);
        bytes.extend([HEADER, 0, types, types, strings].into_iter().flat_map(u32::to_ne_bytes));
        bytes.extend(self.types);
        bytes.extend(self.strings);
        bytes
    }
}
