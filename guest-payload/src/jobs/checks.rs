//! Checks: what a call of each form of the check costs, on one vCPU. The others halt.
//!
//! Two ways to call it. *Throughput*: one call after another, none waits for another's answer, as far as the processor can tell.
//! *Chain*: each asks about the vCPU that the answer before chose, so that each waits for the one before, as a loop does that
//! branches on it and is mispredicted. And two callers: a turn of [`guest_payload::owner_spin`]'s loops.
//!
//! Batches are short, and go round all forms again and again, so that a slow spell of the machine falls on all of them. What
//! is reported is the median batch. A last row does without a check: what remains is the loop.

use core::hint::black_box;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use guest_payload::check::{Call, Check, Inline, Pointer, Save0, Save1, Save2, Thunk};
use guest_payload::owner_spin::{SPINNERS, Semaphore, Spinner};
use protocol::VcpuId;
use protocol::report::FORMS;
use protocol::words;

use super::{Part, idle};
use crate::metal::clock;
use crate::metal::entry::REPORT;

/// Calls in a batch.
const CALLS: u64 = 1024;

/// Calls without a branch between them.
const UNROLLED: u64 = 8;

/// Batches of each.
const ROUNDS: usize = 255;

/// What a batch can measure.
const KINDS: usize = 4;

/// Cycles of each batch.
static BATCHES: [[[AtomicU32; ROUNDS]; KINDS]; FORMS + 1] =
    [const { [const { [const { AtomicU32::new(0) }; ROUNDS] }; KINDS] }; FORMS + 1];

static SEMAPHORE: Semaphore = Semaphore::new();

/// No check: what is left of a batch then.
#[derive(Clone, Copy)]
struct Nothing;

impl Check for Nothing {
    const WORD: words::Check = words::Check::Inline;

    #[inline]
    fn is_preempted(vcpu: VcpuId) -> bool {
        black_box(vcpu.index()) > usize::from(u8::MAX)
    }
}

/// A form's two batches.
struct Batches {
    throughput: fn() -> u64,
    chain: fn() -> u64,
}

const fn batches<K: Check>() -> Batches {
    Batches { throughput: throughput::<K>, chain: chain::<K> }
}

const ALL: [Batches; FORMS + 1] = [
    batches::<Thunk>(),
    batches::<Call>(),
    batches::<Save2>(),
    batches::<Save1>(),
    batches::<Save0>(),
    batches::<Inline>(),
    batches::<Pointer>(),
    batches::<Nothing>(),
];

pub(super) fn run(part: Part) {
    if part.machine.vcpu.id != VcpuId::BOOT {
        return idle::run(part);
    }
    part.spin_until_open();
    for round in 0..ROUNDS {
        for (form, batches) in ALL.iter().enumerate() {
            note(form, 0, round, (batches.throughput)());
            note(form, 1, round, (batches.chain)());
            for (shape, spinner) in SPINNERS.get(form).into_iter().flatten().enumerate() {
                note(form, 2 + shape, round, turns(*spinner));
            }
        }
    }
    for (form, cost) in REPORT.header.checks.iter().enumerate() {
        let places: [&AtomicU64; KINDS] = [&cost.call, &cost.chain, &cost.spin, &cost.folded];
        for (kind, place) in places.into_iter().enumerate() {
            place.store(median(form, kind) * 1000 / CALLS, Ordering::Relaxed);
        }
    }
    part.close();
}

fn note(form: usize, kind: usize, round: usize, cycles: u64) {
    BATCHES[form][kind][round].store(u32::try_from(cycles).unwrap_or(u32::MAX), Ordering::Relaxed);
}

fn median(form: usize, kind: usize) -> u64 {
    let mut batches = [0; ROUNDS];
    for (batch, kept) in batches.iter_mut().zip(&BATCHES[form][kind]) {
        *batch = kept.load(Ordering::Relaxed);
    }
    batches.sort_unstable();
    u64::from(batches[ROUNDS / 2])
}

#[inline(never)]
fn throughput<K: Check>() -> u64 {
    let vcpu = black_box(VcpuId::BOOT);
    let began = clock::now_in_order();
    for _ in 0..CALLS / UNROLLED {
        for _ in 0..UNROLLED {
            black_box(K::is_preempted(vcpu));
        }
    }
    clock::now_in_order() - began
}

#[inline(never)]
fn chain<K: Check>() -> u64 {
    // Whatever the answer, it is the same vCPU; but nobody knows.
    let vcpus = black_box([VcpuId::BOOT; 2]);
    let mut vcpu = vcpus[0];
    let began = clock::now_in_order();
    for _ in 0..CALLS {
        vcpu = vcpus[usize::from(black_box(K::is_preempted(vcpu)))];
    }
    black_box(vcpu);
    clock::now_in_order() - began
}

fn turns(spinner: Spinner) -> u64 {
    let began = clock::now_in_order();
    black_box(spinner(&SEMAPHORE, CALLS));
    clock::now_in_order() - began
}
