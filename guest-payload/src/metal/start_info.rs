//! The PVH start info: the command line, and the end of memory.
//!
//! The loader writes it. The payload checks what can be checked.

#![expect(unsafe_code, reason = "structures at addresses that the loader passes")]

/// End of the mapped addresses.
const MAPPED: u64 = 1 << 32;
/// Kind of a memory map entry: RAM.
const KIND_RAM: u32 = 1;
const MAGIC: u32 = 0x336e_c578;
/// Limit of the command line (bytes).
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
    /// Returns the start info at `gpa`, or `None` if there is none.
    pub(crate) fn at(gpa: u64) -> Option<Self> {
        let info: Self = read(gpa)?;
        (info.magic == MAGIC).then_some(info)
    }

    /// Returns the command line, or `None` if it is not UTF-8 or has no end.
    pub(crate) fn command_line(&self) -> Option<&'static str> {
        if self.command_line == 0 {
            return Some("");
        }
        let longest = LONGEST_COMMAND_LINE.min(MAPPED.saturating_sub(self.command_line));
        let length = (0..longest).find(|offset| read::<u8>(self.command_line + offset) == Some(0))?;
        let start = core::ptr::with_exposed_provenance::<u8>(usize::try_from(self.command_line).ok()?);
        // SAFETY: the bytes are mapped, were read above, and no code writes them while the guest
        // runs.
        let bytes = unsafe { core::slice::from_raw_parts(start, usize::try_from(length).ok()?) };
        core::str::from_utf8(bytes).ok()
    }

    /// Returns the end (GPA) of the last range of the memory map. No RAM lies beyond.
    pub(crate) fn end_of_memory(&self) -> Option<u64> {
        self.memory_map().filter_map(|entry| entry.address.checked_add(entry.size)).max()
    }

    /// Returns the end (GPA) of the last range of RAM that is mapped.
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

/// Reads plain data at `gpa`. Returns `None` if it is not mapped.
fn read<T: Copy>(gpa: u64) -> Option<T> {
    let end = gpa.checked_add(size_of::<T>() as u64)?;
    if gpa == 0 || end > MAPPED {
        return None;
    }
    let place = core::ptr::with_exposed_provenance::<T>(usize::try_from(gpa).ok()?);
    // SAFETY: the first 4 GiB are mapped, and addresses without memory read as ones. `T` is one of
    // this file's integer structures, for which all bytes are valid.
    Some(unsafe { place.read_unaligned() })
}
