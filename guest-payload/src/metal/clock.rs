//! The clock: the time stamp counter, and its rate.

#![expect(unsafe_code, reason = "rdtsc and lfence")]

use core::arch::x86_64::{_mm_lfence, _rdtsc};

use super::ports::{self, PIT_CHANNEL_2, PIT_CONTROL, SPEAKER};

/// Returns the time stamp counter (cycles). It advances while this vCPU does not run.
#[inline]
pub(crate) fn now() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and CR4.TSD is clear.
    unsafe { _rdtsc() }
}

/// Returns the time stamp counter, ordered after all earlier loads. An unordered read may overtake
/// a load that misses the cache, such as the one that found a lock granted.
#[inline]
pub(crate) fn now_after_loads() -> u64 {
    // SAFETY: every x86-64 processor has SSE2.
    unsafe { _mm_lfence() };
    now()
}

/// Returns the time stamp counter, ordered after all earlier loads and before all later ones.
#[inline]
pub(crate) fn now_serialized() -> u64 {
    let now = now_after_loads();
    // SAFETY: every x86-64 processor has SSE2.
    unsafe { _mm_lfence() };
    now
}

/// Rate of the PIT (Hz).
const PIT_HZ: u64 = 1_193_182;
/// Length of the measurement: 10 ms.
const PIT_TICKS: u16 = 11_932;
/// Channel 2, low byte then high byte, one shot.
const PIT_ONE_SHOT: u8 = 0b1011_0000;
const GATE: u8 = 1;
const SPEAKER_ON: u8 = 2;
const OUTPUT: u8 = 1 << 5;

/// Measures the rate of the clock (kHz) against the PIT, in 10 ms. Returns 0 if the machine has no
/// PIT.
pub(crate) fn measure_khz() -> u32 {
    let speaker = ports::read(SPEAKER) & !(SPEAKER_ON | GATE);
    ports::write(SPEAKER, speaker);
    ports::write(PIT_CONTROL, PIT_ONE_SHOT);
    let [low, high] = PIT_TICKS.to_le_bytes();
    ports::write(PIT_CHANNEL_2, low);
    ports::write(PIT_CHANNEL_2, high);
    ports::write(SPEAKER, speaker | GATE);
    let began = now();
    // A machine without a PIT reads all ones, so its output is high at once.
    while ports::read(SPEAKER) & OUTPUT == 0 {}
    let cycles = now().wrapping_sub(began);
    let khz = cycles.saturating_mul(PIT_HZ) / u64::from(PIT_TICKS) / 1000;
    // A measurement of less than 1 % of its length did not wait for a PIT.
    if khz < 10_000 { 0 } else { u32::try_from(khz).unwrap_or(u32::MAX) }
}

/// Converts `ns` to cycles of a clock of `khz`.
pub(crate) fn cycles(ns: u64, khz: u32) -> u64 {
    ns.saturating_mul(khz.into()) / 1_000_000
}
