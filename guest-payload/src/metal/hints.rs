//! Hints to the host's scheduler, and from it. See [`protocol::payload::hints`] for the page.
//!
//! The parameters of the command line turn each kind on. A kind that is off costs one load of a
//! flag that never changes.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use protocol::VcpuId;
use protocol::payload::hints::{Doorbell, Episode, HintPage};
use protocol::payload::params::Workload;

use super::entry::REPORT;
use super::{clock, ports};

/// Whether vCPUs publish hints.
static HINTS: AtomicBool = AtomicBool::new(false);
/// Whether vCPUs ring the doorbell for urgent hints.
static DOORBELL: AtomicBool = AtomicBool::new(false);
/// Shortest episode to log (cycles); 0 if none is logged.
static SHORTEST: AtomicU64 = AtomicU64::new(0);

/// Shortest episode to log (ns). Shorter ones are frequent, and of no interest in a trace.
const SHORTEST_NS: u64 = 10_000;

/// Enables the hints that `workload` selects. `khz` is the rate of the clock.
pub(crate) fn enable(workload: Workload, khz: u32) {
    HINTS.store(workload.hints, Ordering::Relaxed);
    DOORBELL.store(workload.doorbell, Ordering::Relaxed);
    SHORTEST.store(if workload.trace { clock::cycles(SHORTEST_NS, khz) } else { 0 }, Ordering::Relaxed);
}

fn page_of(vcpu: VcpuId) -> &'static HintPage {
    &REPORT.hints[vcpu.index()]
}

#[inline]
fn are_on() -> bool {
    HINTS.load(Ordering::Relaxed)
}

/// Hints that `me` has waited for a lock since `now` (cycles).
#[inline]
pub(crate) fn lock_wanted(me: VcpuId, now: u64) {
    if are_on() {
        page_of(me).guest.waiting_since.store(now, Ordering::Relaxed);
    }
}

/// Hints that `me` has acquired a lock.
#[inline]
pub(crate) fn lock_acquired(me: VcpuId) {
    if are_on() {
        let hints = &page_of(me).guest;
        hints.locks_held.store(1, Ordering::Relaxed);
        hints.urgent.store(1, Ordering::Relaxed);
        hints.waiting_since.store(0, Ordering::Relaxed);
    }
}

/// Hints that `me` has released its lock.
#[inline]
pub(crate) fn lock_released(me: VcpuId) {
    if are_on() {
        let hints = &page_of(me).guest;
        hints.locks_held.store(0, Ordering::Relaxed);
        hints.urgent.store(0, Ordering::Relaxed);
        hints.waiting_since.store(0, Ordering::Relaxed);
    }
}

/// Logs a wait for a lock, or a section under it, if it took long enough.
#[inline]
pub(crate) fn log_episode(me: VcpuId, episode: Episode) {
    let shortest = SHORTEST.load(Ordering::Relaxed);
    if shortest != 0 && episode.to.saturating_sub(episode.from) >= shortest {
        page_of(me).episodes.push(episode);
    }
}

/// Hints that `me` is about to halt.
pub(crate) fn halting(me: VcpuId) {
    if are_on() {
        page_of(me).guest.is_halted.store(1, Ordering::Relaxed);
        ring(me, Doorbell::Halt);
    }
}

/// Hints that `vcpu` runs again after a halt. The waker calls this, or `vcpu` itself.
pub(crate) fn woken(vcpu: VcpuId) {
    if are_on() && page_of(vcpu).guest.is_halted.swap(0, Ordering::Relaxed) == 1 {
        ring(vcpu, Doorbell::Wake);
    }
}

/// Hints that `me` wants `vcpu` to run. Returns `false` if doorbells are off; the caller may then
/// ask the monitor directly.
pub(crate) fn yield_to(me: VcpuId, vcpu: VcpuId) -> bool {
    let is_on = DOORBELL.load(Ordering::Relaxed);
    if is_on {
        page_of(me).guest.yield_to.store(vcpu.apic_id().into(), Ordering::Relaxed);
        ring(me, Doorbell::Yield);
    }
    is_on
}

fn ring(vcpu: VcpuId, reason: Doorbell) {
    if DOORBELL.load(Ordering::Relaxed) && page_of(vcpu).guest.ring(reason) {
        // The value does not matter: the host reads the pages.
        ports::yield_to(vcpu);
    }
}

/// Spins while less than `least` (cycles) is left of the slice of `me`, if the host publishes its
/// end.
pub(crate) fn wait_for_slice(me: VcpuId, least: u64) {
    if least == 0 {
        return;
    }
    let end = &page_of(me).host.slice_end;
    // An end in the past is stale: the host has not published the next slice, which may be long.
    loop {
        let left = end.load(Ordering::Relaxed).saturating_sub(clock::now());
        if left == 0 || left >= least || REPORT.header.close_now.load(Ordering::Relaxed) != 0 {
            return;
        }
        core::hint::spin_loop();
    }
}
