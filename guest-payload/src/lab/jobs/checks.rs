//! Checks: the cost of each form of the check, measured on one vCPU. The others halt.
//!
//! - **Throughput**: calls that do not depend on each other's result.
//! - **Chain**: each call takes the vCPU that the result before selected. It measures latency, as
//!   in a loop whose branch on the result is mispredicted.
//! - **Callers**: an iteration of the loops of [`guest_payload::lab::owner_spin`].
//!
//! Batches are short and alternate between all forms, so that a slow phase of the machine affects
//! all of them. The report has the median batch. A last row measures the loop without a check.

use core::hint::black_box;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use guest_payload::check::{Check, Save0};
use guest_payload::lab::check_forms::{Call, Inline, Pointer, Save1, Save2, Thunk};
use guest_payload::lab::owner_spin::{SPINNERS, Semaphore, Spinner};
use protocol::VcpuId;
use protocol::payload::params;
use protocol::payload::report::FORMS;

use super::idle;
use crate::jobs::frame::Part;
use crate::metal::clock;
use crate::metal::entry::REPORT;

/// Calls per batch.
const CALLS: u64 = 1024;

/// Calls without a branch between them.
const UNROLLED: u64 = 8;

/// Batches of each kind.
const ROUNDS: usize = 255;

/// Kinds of batches.
const KINDS: usize = 4;

/// Duration of each batch (cycles).
static BATCHES: [[[AtomicU32; ROUNDS]; KINDS]; FORMS + 1] =
    [const { [const { [const { AtomicU32::new(0) }; ROUNDS] }; KINDS] }; FORMS + 1];

static SEMAPHORE: Semaphore = Semaphore::new();

/// No check: measures the loop itself.
#[derive(Clone, Copy)]
struct Nothing;

impl Check for Nothing {
    const FORM: params::Check = params::Check::Inline;

    #[inline]
    fn is_preempted(vcpu: VcpuId) -> bool {
        black_box(vcpu.index()) > usize::from(u8::MAX)
    }
}

/// The two batches of a form.
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

pub(crate) fn run(part: Part) {
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
    let began = clock::now_serialized();
    for _ in 0..CALLS / UNROLLED {
        for _ in 0..UNROLLED {
            black_box(K::is_preempted(vcpu));
        }
    }
    clock::now_serialized() - began
}

#[inline(never)]
fn chain<K: Check>() -> u64 {
    // Either result selects the same vCPU, but the compiler does not know.
    let vcpus = black_box([VcpuId::BOOT; 2]);
    let mut vcpu = vcpus[0];
    let began = clock::now_serialized();
    for _ in 0..CALLS {
        vcpu = vcpus[usize::from(black_box(K::is_preempted(vcpu)))];
    }
    black_box(vcpu);
    clock::now_serialized() - began
}

fn turns(spinner: Spinner) -> u64 {
    let began = clock::now_serialized();
    black_box(spinner(&SEMAPHORE, CALLS));
    clock::now_serialized() - began
}
