//! The clock: the time stamp counter, and its rate.

#![expect(unsafe_code, reason = "rdtsc and lfence")]

use core::arch::x86_64::{_mm_lfence, _rdtsc};

use super::ports::{self, PIT_CHANNEL_2, PIT_CONTROL, SPEAKER};

/// The time stamp counter. It goes on while this vCPU does not run.
#[inline]
pub(crate) fn now() -> u64 {
    // SAFETY: every x86-64 processor has it, and CR4.TSD is clear.
    unsafe { _rdtsc() }
}

/// The time stamp counter, read after every load before it and before every load behind it. Without that a processor reads the
/// counter while a load from another's cache is still under way.
#[inline]
pub(crate) fn now_in_order() -> u64 {
    // SAFETY: every x86-64 processor has SSE2.
    unsafe { _mm_lfence() };
    let now = now();
    // SAFETY: as above.
    unsafe { _mm_lfence() };
    now
}

/// The PIT's rate (Hz).
const PIT_HZ: u64 = 1_193_182;
/// What is measured over: 10 ms.
const PIT_TICKS: u16 = 11_932;
/// Channel 2, low byte then high, count down once.
const PIT_ONE_SHOT: u8 = 0b1011_0000;
const GATE: u8 = 1;
const SPEAKER_ON: u8 = 2;
const OUTPUT: u8 = 1 << 5;

/// Measures the rate (kHz) against the PIT. It takes 10 ms; 0 where no PIT counts.
pub(crate) fn measure_khz() -> u32 {
    let speaker = ports::read(SPEAKER) & !(SPEAKER_ON | GATE);
    ports::write(SPEAKER, speaker);
    ports::write(PIT_CONTROL, PIT_ONE_SHOT);
    let [low, high] = PIT_TICKS.to_le_bytes();
    ports::write(PIT_CHANNEL_2, low);
    ports::write(PIT_CHANNEL_2, high);
    ports::write(SPEAKER, speaker | GATE);
    let began = now();
    // A machine without a PIT reads all ones: the output is high at once.
    while ports::read(SPEAKER) & OUTPUT == 0 {}
    let cycles = now().wrapping_sub(began);
    let khz = cycles.saturating_mul(PIT_HZ) / u64::from(PIT_TICKS) / 1000;
    // What took less than a hundredth of the time was not counted by anybody.
    if khz < 10_000 { 0 } else { u32::try_from(khz).unwrap_or(u32::MAX) }
}

/// `ns` in cycles of a clock of `khz`.
pub(crate) fn cycles(ns: u64, khz: u32) -> u64 {
    ns.saturating_mul(khz.into()) / 1_000_000
}
