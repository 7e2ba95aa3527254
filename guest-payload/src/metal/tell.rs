//! Telling the host: what words have asked this guest to tell, and how.
//!
//! See [`protocol::exchange`]. What is not asked for costs a load of a word that never changes.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use protocol::VcpuId;
use protocol::exchange::{Episode, EpisodeKind, Exchange, Ring};
use protocol::words::Workload;

use super::entry::REPORT;
use super::{clock, ports};

/// Whether vCPUs say what they hold and want.
static TELLS: AtomicBool = AtomicBool::new(false);
/// Whether they ring the doorbell for what cannot wait.
static RINGS: AtomicBool = AtomicBool::new(false);
/// Episodes shorter than this (cycles) are not told; none where it is 0.
static SHORTEST: AtomicU64 = AtomicU64::new(0);

/// Episodes shorter than this (ns) are many, and of no interest.
const SHORTEST_NS: u64 = 10_000;

/// Takes note of what `workload` asks for.
pub(crate) fn begin(workload: Workload, khz: u32) {
    TELLS.store(workload.tell, Ordering::Relaxed);
    RINGS.store(workload.ring, Ordering::Relaxed);
    SHORTEST.store(if workload.trace { clock::cycles(SHORTEST_NS, khz) } else { 0 }, Ordering::Relaxed);
}

fn of(vcpu: VcpuId) -> &'static Exchange {
    &REPORT.exchange[vcpu.index()]
}

#[inline]
fn tells() -> bool {
    TELLS.load(Ordering::Relaxed)
}

/// `me` wants a lock, since `now`.
#[inline]
pub(crate) fn wants(me: VcpuId, now: u64) {
    if tells() {
        of(me).told.waits_since.store(now, Ordering::Relaxed);
    }
}

/// `me` has it.
#[inline]
pub(crate) fn has(me: VcpuId) {
    if tells() {
        let told = &of(me).told;
        told.holds.store(1, Ordering::Relaxed);
        told.hint.store(1, Ordering::Relaxed);
        told.waits_since.store(0, Ordering::Relaxed);
    }
}

/// `me` has let it go, or wants none any more.
#[inline]
pub(crate) fn has_none(me: VcpuId) {
    if tells() {
        let told = &of(me).told;
        told.holds.store(0, Ordering::Relaxed);
        told.hint.store(0, Ordering::Relaxed);
        told.waits_since.store(0, Ordering::Relaxed);
    }
}

/// `me` has waited for a lock, or held it, from then until then.
#[inline]
pub(crate) fn episode(me: VcpuId, kind: EpisodeKind, from: u64, to: u64) {
    let shortest = SHORTEST.load(Ordering::Relaxed);
    if shortest != 0 && to.saturating_sub(from) >= shortest {
        of(me).episodes.push(Episode { kind, from, to });
    }
}

/// `me` is about to halt.
pub(crate) fn halts(me: VcpuId) {
    if tells() {
        of(me).told.is_halted.store(1, Ordering::Relaxed);
        ring(me, Ring::Halt);
    }
}

/// `vcpu` goes on: it was woken, or has woken by itself.
pub(crate) fn wakes(vcpu: VcpuId) {
    if tells() && of(vcpu).told.is_halted.swap(0, Ordering::Relaxed) == 1 {
        ring(vcpu, Ring::Wake);
    }
}

/// `me` wants `vcpu` to run. Says whether the host that chooses who runs has been asked; where none does, its monitor may be.
pub(crate) fn wants_to_run(me: VcpuId, vcpu: VcpuId) -> bool {
    let rings = RINGS.load(Ordering::Relaxed);
    if rings {
        of(me).told.yields_to.store(vcpu.apic_id().into(), Ordering::Relaxed);
        ring(me, Ring::Yield);
    }
    rings
}

fn ring(vcpu: VcpuId, why: Ring) {
    if RINGS.load(Ordering::Relaxed) && of(vcpu).told.rings(why) {
        // What is written does not matter: the host looks at the pages.
        ports::yield_to(vcpu);
    }
}

/// Spins while so little (cycles) is left of this vCPU's turn, as far as the host has told.
pub(crate) fn wait_for_a_turn_of(me: VcpuId, least: u64) {
    if least == 0 {
        return;
    }
    let ends = &of(me).heard.turn_ends;
    // Once it is past, the host is late: the turn that it has not told of may be long.
    loop {
        let left = ends.load(Ordering::Relaxed).saturating_sub(clock::now());
        if left == 0 || left >= least || REPORT.header.close_now.load(Ordering::Relaxed) != 0 {
            return;
        }
        core::hint::spin_loop();
    }
}
