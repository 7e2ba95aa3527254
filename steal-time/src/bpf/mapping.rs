//! Memory mappings of files: the kernel's BTF, and the BPF array maps.
#![expect(unsafe_code, reason = "maps files and lends out their contents")]

use std::io;
use std::ops::Deref;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU8;

use super::slot::Slot;

/// A type that can live in a mapped file which another writer changes.
///
/// # Safety
/// Any bytes are a valid value of the type, and a shared reference stays sound while the kernel or
/// another mapping writes the file: the type consists of atomics only.
pub(super) unsafe trait Shared {}

// SAFETY: `Slot` is `repr(C)`, and each field is an `AtomicU64`.
unsafe impl Shared for Slot {}

// SAFETY: an array of atomics.
unsafe impl<const N: usize> Shared for [AtomicU8; N] {}

/// A mapping of the first `len` values of type `T` in a file.
#[derive(Debug)]
pub(super) struct Mapping<T> {
    start: NonNull<T>,
    len: usize,
}

// SAFETY: a mapping belongs to the process, so that any thread may access and unmap it.
unsafe impl<T: Send> Send for Mapping<T> {}

// SAFETY: `&Mapping` gives access to `&T` only.
unsafe impl<T: Sync> Sync for Mapping<T> {}

impl<T: Shared> Mapping<T> {
    /// Maps the first `len` values of a file that the kernel writes too.
    pub(super) fn of_shared_file(file: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        Self::new(file, len, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED)
    }
}

impl Mapping<u8> {
    /// Maps the first `len` bytes of a file that never changes, such as the kernel's BTF.
    pub(super) fn of_constant_file(file: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        Self::new(file, len, libc::PROT_READ, libc::MAP_PRIVATE)
    }
}

impl<T> Mapping<T> {
    fn new(
        file: BorrowedFd<'_>,
        len: usize,
        protection: libc::c_int,
        flags: libc::c_int,
    ) -> io::Result<Self> {
        const { assert!(align_of::<T>() <= 4096, "a mapping is aligned to pages") };
        let bytes = len.checked_mul(size_of::<T>()).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: with a null address and no MAP_FIXED the kernel chooses a free range, so no
        // existing mapping changes.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, file.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(start.cast())
            .map(|start| Self { start, len })
            .ok_or(io::ErrorKind::AddrNotAvailable.into())
    }
}

impl<T> Deref for Mapping<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `new` mapped `len` values from `start`, readable and page-aligned, and they stay
        // mapped until `self` is dropped. Any bytes are a valid `T` (`Shared`, or `u8`). Other
        // writers are sound (`Shared`) or do not exist (`of_constant_file`).
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T> Drop for Mapping<T> {
    fn drop(&mut self) {
        // SAFETY: `new` mapped exactly this range, and each reference into it borrows `self`, which
        // is being dropped.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len * size_of::<T>()) };
    }
}
