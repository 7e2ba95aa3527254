//! Properties of the loader that hold for every payload.

use std::ops::Range;

use fastrand::Rng;
use linux_loader::elf::{PT_LOAD, PT_NOTE};
use protocol::payload::machine::HIGH_RAM_START;
use vm_memory::{Bytes, GuestAddress};

use super::notes::tests::note;
use super::*;
use crate::boot::low_memory::{COMMAND_LINE_MAX, RESERVED};

const MIB: u64 = 1 << 20;

/// Reads `range` of guest memory.
fn bytes_at(ram: &Ram, range: Range<u64>) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap()];
    ram.memory().read_slice(&mut bytes, GuestAddress(range.start)).unwrap();
    bytes
}

/// A random number, which is often at the edge of something.
fn number(rng: &mut Rng, edges: &[u64]) -> u64 {
    let edge = edges[rng.usize(..edges.len())];
    match rng.u32(0..40) {
        0 => rng.u64(..),
        1 => u64::MAX - rng.u64(..0x2000),
        2 => rng.u64(..16 * MIB),
        3 => edge.wrapping_sub(1),
        4 => edge + 1,
        _ => edge,
    }
}

/// A file of random program headers, notes and content.
fn random_elf(rng: &mut Rng) -> Vec<u8> {
    const ADDRESSES: [u64; 12] = [
        HIGH_RAM_START,
        2 * MIB,
        3 * MIB,
        4 * MIB,
        5 * MIB,
        0,
        0x1000,
        0x1_0000,
        0x8_0000,
        0x9_fc00,
        0xe_0000,
        0xf_0000,
    ];
    const SIZES: [u64; 6] = [0, 1, 0x10, 0x200, 0x1000, MIB];
    const OFFSETS: [u64; 8] = [0, 0, 0x1000, 0x1000, 0x1800, 0x1800, 0x2000, 1 << 40];
    let count = rng.u8(1..5);
    let addresses: Vec<_> = (0..count).map(|_| number(rng, &ADDRESSES)).collect();
    let entries = [addresses[0], addresses[0], addresses[0], number(rng, &ADDRESSES)];
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    for word in [entries[rng.usize(..4)], 64, 0] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file.extend_from_slice(&[0, 0, 0, 0, 64, 0, 56, 0, count, 0, 64, 0, 0, 0, 0, 0]);
    for address in addresses {
        let kind = [PT_LOAD, PT_LOAD, PT_LOAD, PT_NOTE, 6][rng.usize(..5)];
        let offset = number(rng, &OFFSETS);
        let (content, size) = (number(rng, &SIZES), number(rng, &SIZES));
        let align = [0, 1, 4, 8, 16, 4096, rng.u64(..)][rng.usize(..7)];
        file.extend_from_slice(&kind.to_le_bytes());
        file.extend_from_slice(&7_u32.to_le_bytes());
        for word in [offset, address, address, content.min(size), size, align] {
            file.extend_from_slice(&word.to_le_bytes());
        }
    }
    file.resize(0x1000, 0);
    for align in [4, 8] {
        let entry = entries[rng.usize(..4)].to_le_bytes();
        file.extend_from_slice(&note(b"Xen\0", 18, &entry[..rng.usize(..9)], align));
        if rng.u8(..8) == 0 {
            file.extend_from_slice(&note(b"vmm\0", 1, &[entry; 3].concat()[..rng.usize(..25)], align));
        }
    }
    file.resize_with(0x2800, || rng.u8(..));
    for _ in 0..rng.usize(..3) {
        let at = rng.usize(..file.len());
        file[at] = rng.u8(..);
    }
    if rng.u8(..8) == 0 {
        file.truncate(rng.usize(..file.len()));
    }
    file
}

/// Asserts what holds for a layout that [`parse`] accepts.
fn assert_consistent(layout: &Layout, file: &[u8]) {
    let segments = &layout.segments;
    assert!(!segments.is_empty());
    for (number, segment) in segments.iter().enumerate() {
        let Segment { range, content, .. } = segment;
        assert!(range.start < range.end && content.end <= file.len() as u64, "{segment:?}");
        assert!(content.end - content.start <= range.end - range.start, "{segment:?}");
        let apart = |other: &Segment| other.range.end <= range.start || range.end <= other.range.start;
        assert!(segments[..number].iter().all(apart), "{segments:x?}");
    }
}

#[test]
fn random_elf_files_load_unchanged_or_are_refused_and_never_panic() {
    let (mut rng, mut loaded, mut refused) = (Rng::with_seed(17), 0, 0);
    for _ in 0..20_000 {
        let file = random_elf(&mut rng);
        let Ok(payload) = Payload::parse(Image::from_bytes("test", file.clone()), false) else {
            refused += 1;
            continue;
        };
        assert_consistent(&payload.layout, &file);
        let ram = Ram::new(8).unwrap();
        if payload.load(&ram, rng.usize(1..=255), "x", None).is_err() {
            refused += 1;
            continue;
        }
        loaded += 1;
        for Segment { range, content, .. } in &payload.layout.segments {
            let content = usize::try_from(content.start).unwrap()..usize::try_from(content.end).unwrap();
            let mut expected = file[content].to_vec();
            expected.resize(usize::try_from(range.end - range.start).unwrap(), 0);
            assert!(bytes_at(&ram, range.clone()) == expected, "segment {range:#x?} was overwritten");
        }
    }
    assert!(loaded > 500 && refused > 5_000, "{loaded} loaded, {refused} refused");
}

#[test]
fn boot_structures_of_the_largest_guest_lie_in_the_reserved_areas() {
    let mut file = random_elf(&mut Rng::with_seed(1));
    file.truncate(64);
    file[24..32].copy_from_slice(&HIGH_RAM_START.to_le_bytes());
    file[56] = 1;
    for word in [u64::from(PT_LOAD) | 7 << 32, 0, HIGH_RAM_START, HIGH_RAM_START, 64, 64, 0x1000] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    let payload = Payload::parse(Image::from_bytes("test", file), false).unwrap();
    let ram = Ram::new(4).unwrap();
    let initrd = Image::from_bytes("test", vec![0xff; 0x1_0000]);
    payload.load(&ram, 255, &"x".repeat(COMMAND_LINE_MAX), Some(&initrd)).unwrap();
    for (gpa, byte) in (0..).zip(bytes_at(&ram, 0..HIGH_RAM_START)) {
        let is_reserved = RESERVED.iter().any(|area| area.range.contains(&gpa));
        assert!(byte == 0 || is_reserved, "the byte at {gpa:#x} is {byte:#x}");
    }
}
