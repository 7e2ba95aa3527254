//! Files in memory: the kernel's BTF, and the arrays that we share with the program.
#![expect(unsafe_code, reason = "maps files and lends out their contents")]

use std::io;
use std::ops::Deref;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU8;

use super::slot::Slot;

/// What a file may hold.
///
/// # Safety
/// Any bytes are a valid value, and a reference to one stays sound while somebody else writes the file: the type
/// consists of atomics.
pub(super) unsafe trait Shared {}

// SAFETY: atomics and nothing else.
unsafe impl Shared for Slot {}

// SAFETY: atomics and nothing else.
unsafe impl<const N: usize> Shared for [AtomicU8; N] {}

/// The first `len` values of type `T` in a file, mapped.
#[derive(Debug)]
pub(super) struct Mapping<T> {
    start: NonNull<T>,
    len: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread; it can be unmapped by any.
unsafe impl<T: Send> Send for Mapping<T> {}

// SAFETY: it lends out `&T` alone.
unsafe impl<T: Sync> Sync for Mapping<T> {}

impl<T: Shared> Mapping<T> {
    /// Maps the first `len` values of a file that the other side writes too.
    pub(super) fn of_shared_file(file: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        Self::new(file, len, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED)
    }
}

impl Mapping<u8> {
    /// Maps the first `len` bytes of a file that nobody writes, as the kernel's BTF.
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
        const { assert!(align_of::<T>() <= 4096, "pages are the alignment that there is") };
        let bytes = len.checked_mul(size_of::<T>()).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: the kernel chooses the address, so that no other mapping is touched.
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
        // SAFETY: `new` mapped `len` values from `start`, readable, on a page boundary; they stay mapped until `self`
        // is dropped. Any bytes are a `T` (`Shared`, or `u8`), and other writers are allowed for (`Shared`) or do not
        // exist (`of_constant_file`).
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T> Drop for Mapping<T> {
    fn drop(&mut self) {
        // SAFETY: `new` mapped exactly this range, and every reference into it borrows `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len * size_of::<T>()) };
    }
}
