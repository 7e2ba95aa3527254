//! ELF files with the headers that a test chooses.

/// A loadable segment.
pub(crate) struct Segment {
    /// Physical address at which it is loaded.
    pub(crate) address: u64,
    /// Bytes in the file.
    pub(crate) bytes: Vec<u8>,
    /// Size in memory (bytes).
    pub(crate) memory_size: u64,
}

impl Segment {
    /// A segment with the same size in memory and in the file.
    pub(crate) fn of(address: u64, bytes: &[u8]) -> Self {
        Self { address, bytes: bytes.to_vec(), memory_size: bytes.len() as u64 }
    }
}

/// A static x86-64 executable with these segments, entered at `entry`, without notes.
pub(crate) fn executable(entry: u64, segments: &[Segment]) -> Vec<u8> {
    const HEADER: u64 = 64;
    const PROGRAM_HEADER: u64 = 56;
    let count = u16::try_from(segments.len()).unwrap();
    let mut file = Vec::new();
    file.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend_from_slice(&2_u16.to_le_bytes()); // executable
    file.extend_from_slice(&62_u16.to_le_bytes()); // x86-64
    file.extend_from_slice(&1_u32.to_le_bytes());
    for word in [entry, HEADER, 0] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file.extend_from_slice(&0_u32.to_le_bytes());
    for half in [64, 56, count, 64, 0, 0] {
        file.extend_from_slice(&half.to_le_bytes());
    }
    let mut offset = HEADER + PROGRAM_HEADER * u64::from(count);
    for segment in segments {
        let size = segment.bytes.len() as u64;
        file.extend_from_slice(&1_u32.to_le_bytes()); // to be loaded
        file.extend_from_slice(&7_u32.to_le_bytes()); // readable, writable, executable
        for word in [offset, segment.address, segment.address, size, segment.memory_size, 0x1000] {
            file.extend_from_slice(&word.to_le_bytes());
        }
        offset += size;
    }
    for segment in segments {
        file.extend_from_slice(&segment.bytes);
    }
    file
}
