//! The caller of the check: Linux' owner-spinning loop, compiled against every form.
//!
//! In 2017 each form was judged by what it does to `rwsem_spin_on_owner()`: the size of the
//! function, the registers it saves, the variables it spills. This module has the loop of that
//! function in two shapes:
//!
//! - **Alone**: a function of its own, as in Linux.
//! - **Folded**: inlined into a larger function with more live variables. The thread expected a
//!   much higher register pressure there.
//!
//! Each instance has a symbol of its own (`owner_spin_save0`, `owner_spin_folded_save0`), for a
//! disassembler to find.
//!
//! Source: Linux 4.10, `kernel/locking/rwsem-xadd.c`.

#![expect(unsafe_code, reason = "names for a disassembler")]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use protocol::{MAX_VCPUS, VcpuId};

use super::check_forms::{Call, Inline, Pointer, Save1, Save2, Thunk};
use crate::check::{Check, Save0};

/// The state that a spinner reads.
#[repr(C)]
pub struct Semaphore {
    /// The writer that holds the semaphore, as one more than its vCPU's index; 0 for none.
    pub owner: AtomicU32,
    /// Not 0 if this vCPU should reschedule.
    pub need_resched: AtomicU32,
    /// 1 for each vCPU whose current task is running.
    pub on_cpu: [AtomicU32; MAX_VCPUS],
    /// Iterations of all loops.
    pub turns: AtomicU64,
}

impl Semaphore {
    /// Returns a semaphore that vCPU 0 holds.
    pub const fn new() -> Self {
        Self {
            owner: AtomicU32::new(1),
            need_resched: AtomicU32::new(0),
            on_cpu: [const { AtomicU32::new(1) }; MAX_VCPUS],
            turns: AtomicU64::new(0),
        }
    }
}

impl Default for Semaphore {
    fn default() -> Self {
        Self::new()
    }
}

/// A spinner, compiled against one form. It spins while the owner is the same, runs, and no
/// reschedule is needed, for at most `turns` iterations. Returns whether to try for the semaphore
/// now.
pub type Spinner = extern "C" fn(&Semaphore, u64) -> bool;

/// One iteration. Returns `None` to continue.
#[inline(always)]
#[expect(clippy::inline_always, reason = "both shapes are to hold the loop itself")]
fn look<K: Check>(semaphore: &Semaphore, owner: u32, vcpu: VcpuId) -> Option<bool> {
    if semaphore.owner.load(Ordering::Relaxed) != owner {
        return Some(true);
    }
    let is_on_cpu = semaphore.on_cpu.get(vcpu.index()).is_some_and(|is| is.load(Ordering::Relaxed) != 0);
    if !is_on_cpu || semaphore.need_resched.load(Ordering::Relaxed) != 0 || K::is_preempted(vcpu) {
        return Some(false);
    }
    core::hint::spin_loop();
    None
}

/// The loop as a function of its own.
#[inline(always)]
#[expect(clippy::inline_always, reason = "the named instances are to hold the loop itself")]
fn spin<K: Check>(semaphore: &Semaphore, turns: u64) -> bool {
    let owner = semaphore.owner.load(Ordering::Relaxed);
    let Some(vcpu) = owner_of(owner) else { return true };
    for _ in 0..turns {
        if let Some(is_over) = look::<K>(semaphore, owner, vcpu) {
            return is_over;
        }
    }
    false
}

/// The loop inside a function that also tries for the semaphore, counts, and limits the owners.
#[inline(always)]
#[expect(clippy::inline_always, reason = "the named instances are to hold the loop itself")]
fn spin_folded<K: Check>(semaphore: &Semaphore, turns: u64) -> bool {
    let (mut spun, mut lost, mut longest, mut last) = (0_u64, 0_u64, 0_u64, 0_u32);
    let taken = loop {
        let owner = semaphore.owner.load(Ordering::Relaxed);
        let Some(vcpu) = owner_of(owner) else {
            if semaphore.owner.compare_exchange(0, u32::MAX, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                break true;
            }
            lost += 1;
            continue;
        };
        let mut stretch = 0;
        let is_over = loop {
            if spun + stretch >= turns {
                break false;
            }
            if let Some(is_over) = look::<K>(semaphore, owner, vcpu) {
                break is_over;
            }
            stretch += 1;
        };
        spun += stretch;
        longest = longest.max(stretch);
        if !is_over || (owner == last && lost > turns) {
            break false;
        }
        last = owner;
    };
    semaphore.turns.store(spun ^ longest ^ lost, Ordering::Relaxed);
    taken
}

fn owner_of(word: u32) -> Option<VcpuId> {
    VcpuId::new(usize::try_from(word.checked_sub(1)?).ok()?)
}

macro_rules! spinners {
    ($($form:ident: $alone:ident, $folded:ident;)+) => {
        $(
            #[unsafe(no_mangle)]
            extern "C" fn $alone(semaphore: &Semaphore, turns: u64) -> bool {
                spin::<$form>(semaphore, turns)
            }

            #[unsafe(no_mangle)]
            extern "C" fn $folded(semaphore: &Semaphore, turns: u64) -> bool {
                spin_folded::<$form>(semaphore, turns)
            }
        )+

        /// Both shapes of each form, in the order of [`crate::lab::check_forms::FORMS`].
        pub const SPINNERS: [[Spinner; 2]; 7] = [$([$alone, $folded]),+];
    };
}

spinners! {
    Thunk: owner_spin_thunk, owner_spin_folded_thunk;
    Call: owner_spin_call, owner_spin_folded_call;
    Save2: owner_spin_save2, owner_spin_folded_save2;
    Save1: owner_spin_save1, owner_spin_folded_save1;
    Save0: owner_spin_save0, owner_spin_folded_save0;
    Inline: owner_spin_inline, owner_spin_folded_inline;
    Pointer: owner_spin_pointer, owner_spin_folded_pointer;
}

#[cfg(test)]
#[cfg(not(modelled))]
mod tests {
    use super::*;
    use crate::steal_time::testing::{exclusively, set_preempted};

    #[test]
    fn every_spinner_stops_when_its_owner_is_preempted_sleeps_or_leaves() {
        exclusively(|| {
            for spinner in SPINNERS.as_flattened() {
                let semaphore = Semaphore::new();
                assert!(!spinner(&semaphore, 100), "nothing happens");
                set_preempted(VcpuId::BOOT, 1);
                assert!(!spinner(&semaphore, u64::MAX), "preempted");
                set_preempted(VcpuId::BOOT, 0);
                semaphore.on_cpu[0].store(0, Ordering::Relaxed);
                assert!(!spinner(&semaphore, u64::MAX), "asleep");
                semaphore.owner.store(0, Ordering::Relaxed);
                assert!(spinner(&semaphore, u64::MAX), "free");
            }
        });
    }
}
