//! The PVH start info: the command line, and where memory ends.
//!
//! Written by whoever boots us; believed as far as it can be checked.

#![expect(unsafe_code, reason = "structures at addresses that we are told")]

/// Everything that is mapped.
const MAPPED: u64 = 1 << 32;
/// RAM that a guest may use.
const KIND_RAM: u32 = 1;
const MAGIC: u32 = 0x336e_c578;
/// No command line is longer.
const LONGEST_COMMAND_LINE: u64 = 32 << 10;

/// `hvm_start_info`, version 1.
///
/// Source: Xen `public/arch-x86/hvm/start_info.h`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    command_line: u64,
    rsdp: u64,
    memory_map: u64,
    memory_map_entries: u32,
    reserved: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct MemoryMapEntry {
    address: u64,
    size: u64,
    kind: u32,
    reserved: u32,
}

impl StartInfo {
    /// The start info at `gpa`, if that is what lies there.
    pub(crate) fn at(gpa: u64) -> Option<Self> {
        let info: Self = read(gpa)?;
        (info.magic == MAGIC).then_some(info)
    }

    /// The command line: its bytes up to the terminating zero, as far as they are text.
    pub(crate) fn command_line(&self) -> Option<&'static str> {
        if self.command_line == 0 {
            return Some("");
        }
        let longest = LONGEST_COMMAND_LINE.min(MAPPED.saturating_sub(self.command_line));
        let length = (0..longest).find(|offset| read::<u8>(self.command_line + offset) == Some(0))?;
        let start = core::ptr::with_exposed_provenance::<u8>(usize::try_from(self.command_line).ok()?);
        // SAFETY: the bytes are mapped, were just read, and nobody writes them while the guest runs.
        let bytes = unsafe { core::slice::from_raw_parts(start, usize::try_from(length).ok()?) };
        core::str::from_utf8(bytes).ok()
    }

    /// Where the last range of the memory map ends: no RAM lies there or beyond.
    pub(crate) fn end_of_memory(&self) -> Option<u64> {
        self.memory_map().filter_map(|entry| entry.address.checked_add(entry.size)).max()
    }

    /// Where the last range of RAM ends that is mapped.
    pub(crate) fn end_of_ram(&self) -> Option<u64> {
        let ends = self.memory_map().filter_map(|entry| {
            let end = entry.address.checked_add(entry.size)?;
            (entry.kind == KIND_RAM && end <= MAPPED).then_some(end)
        });
        ends.max()
    }

    fn memory_map(&self) -> impl Iterator<Item = MemoryMapEntry> {
        let (map, size) = (self.memory_map, size_of::<MemoryMapEntry>() as u64);
        let entries = 0..u64::from(self.memory_map_entries);
        entries.filter_map(move |index| read(map.checked_add(index.checked_mul(size)?)?))
    }
}

/// Plain data at `gpa`, if it is mapped.
fn read<T: Copy>(gpa: u64) -> Option<T> {
    let end = gpa.checked_add(size_of::<T>() as u64)?;
    if gpa == 0 || end > MAPPED {
        return None;
    }
    let place = core::ptr::with_exposed_provenance::<T>(usize::try_from(gpa).ok()?);
    // SAFETY: the first 4 GiB are mapped; where there is no memory, reading gives all ones. `T` is one of the integer
    // structures of this file, for which any bytes will do.
    Some(unsafe { place.read_unaligned() })
}
