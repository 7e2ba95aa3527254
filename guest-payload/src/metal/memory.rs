//! The memory functions that compiled code calls. On other targets the C library has them.
//!
//! They use string instructions: the compiler would turn a loop into a call of the function itself.

#![expect(unsafe_code, reason = "raw memory")]

use core::arch::asm;

#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: the caller passes two ranges of `count` bytes that do not overlap.
    unsafe {
        asm!("rep movsb", inout("rcx") count => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags));
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    if to.addr().wrapping_sub(from.addr()) >= count {
        // SAFETY: copying upwards never overwrites bytes that are still to be read.
        return unsafe { memcpy(to, from, count) };
    }
    // SAFETY: the caller passes two ranges of `count` bytes. Here `count` is not 0, so last bytes
    // exist.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") count => _, inout("rdi") to.wrapping_add(count - 1) => _,
            inout("rsi") from.wrapping_add(count - 1) => _, options(nostack));
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, count: usize) -> *mut u8 {
    // SAFETY: the caller passes a range of `count` bytes.
    unsafe {
        asm!("rep stosb", inout("rcx") count => _, inout("rdi") to => _, in("al") value.to_le_bytes()[0],
            options(nostack, preserves_flags));
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
    for place in 0..count {
        // SAFETY: the caller passes `count` bytes at `a`.
        let a = unsafe { a.wrapping_add(place).read_volatile() };
        // SAFETY: the caller passes `count` bytes at `b`.
        let b = unsafe { b.wrapping_add(place).read_volatile() };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
    // SAFETY: the contract is the same.
    unsafe { memcmp(a, b, count) }
}
