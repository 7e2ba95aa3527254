//! Spin: every vCPU spins, looks at its own record, and watches all others'.
//!
//! Nothing here halts. So whoever is switched in had been switched out although it wanted to run; and with more vCPUs
//! than CPUs some are, all the time. Each vCPU shows by a sign of life, a time stamp that it keeps storing, that it is
//! running. What is seen of another vCPU between two looks at it counts only where the looks lie close together: one who
//! was off its own CPU meanwhile has missed what happened.

use core::sync::atomic::Ordering;

use guest_payload::check::{Check, Save0};
use guest_payload::steal_time::{RECORDS, Record, record_of};
use protocol::conformance::Assertion;
use protocol::steal_time::PREEMPTED;
use protocol::{MAX_VCPUS, VcpuId};

use super::{Part, expect, judge};
use crate::metal::clock;
use crate::metal::entry::REPORT;

/// What a waiting guest may add to the byte of a vCPU that is off its CPU (`KVM_VCPU_FLUSH_TLB`).
const FLUSH: u8 = 2;

/// Others that one vCPU watches at most.
const MOST_WATCHED: usize = 8;

/// Two looks lie close together when no more than this is between them.
const CLOSE_NS: u64 = 5_000;

/// Looks at an odd version before a reader has lost its patience.
const PATIENCE: u32 = 1024;

/// Own looks between two at the own padding.
const SELDOM: u64 = 256;

/// What paddings are filled with.
const FILL: u8 = 0x5c;

/// Before the own record is registered.
pub(super) fn prepare(id: VcpuId) {
    record_of(id).fill_padding(FILL);
}

pub(super) fn run(part: Part) {
    let me = part.machine.vcpu.id;
    let others = VcpuId::first(part.machine.vcpus).cycle().skip(me.index() + 1);
    let mut watched = [const { None }; MOST_WATCHED];
    for (place, vcpu) in watched.iter_mut().zip(others.take(part.machine.vcpus - 1)) {
        *place = Some(Watched::new(vcpu));
    }
    let close = clock::cycles(CLOSE_NS, part.machine.vcpu.khz);
    let mut own = Own::new(me);
    while !part.window.is_over(part.report_life()) && clock::now() < part.window.opens {}
    part.open();
    while !part.window.is_over(part.report_life()) {
        own.look();
        for other in watched.iter_mut().flatten() {
            if let Some(latency) = other.look(close) {
                part.report.record_wait(latency);
            }
        }
    }
    part.close();
    own.judge(part);
    let mut total = Seen::default();
    watched.iter().flatten().for_each(|other| total.add(&other.seen));
    total.judge(part);
}

/// The own record, as its vCPU sees it.
struct Own {
    record: &'static Record,
    looks: u64,
    set: u64,
    odd: u64,
    steal: u64,
    back: u64,
    padding: u64,
}

impl Own {
    fn new(id: VcpuId) -> Self {
        Self { record: record_of(id), looks: 0, set: 0, odd: 0, steal: 0, back: 0, padding: 0 }
    }

    fn look(&mut self) {
        self.looks += 1;
        self.set += u64::from(self.record.preempted() != 0);
        self.odd += u64::from(!self.record.version().is_multiple_of(2));
        if let Some(steal) = self.record.steal_ns() {
            self.back += u64::from(steal < self.steal);
            self.steal = steal;
        }
        if self.looks.is_multiple_of(SELDOM) {
            let is_kept = self.record.flags() == 0 && self.record.padding_is(FILL);
            self.padding += u64::from(!is_kept);
        }
    }

    fn judge(&self, part: Part) {
        judge(Assertion::OwnByteClear, self.looks, self.set == 0);
        judge(Assertion::VersionEven, self.looks, self.odd == 0);
        judge(Assertion::StealNeverBack, self.looks, self.back == 0);
        judge(Assertion::OnlyTheWords, self.looks / SELDOM, self.padding == 0);
        part.report.own_samples.store(self.looks, Ordering::Relaxed);
        part.report.own_set.store(self.set, Ordering::Relaxed);
        if part.machine.vcpu.id == VcpuId::BOOT {
            for record in RECORDS.iter().skip(part.machine.vcpus) {
                expect(Assertion::Isolated, record.bytes() == [0; size_of::<Record>()]);
            }
        }
    }
}

/// One look at another vCPU.
#[derive(Clone, Copy)]
struct Look {
    began: u64,
    byte: u8,
    version: u32,
    beat: u64,
}

/// What was seen of others, how often.
#[derive(Clone, Copy, Default)]
struct Seen {
    looks: u64,
    set: u64,
    /// Steal, read to the protocol, and how often it had gone down.
    reads: u64,
    back: u64,
    /// Versions that had moved on, and not by an even number.
    updates: u64,
    strange_updates: u64,
    /// Times that a reader would have lost its patience.
    stuck_odd: u64,
    /// Close looks between which the byte was set; with another version or steal.
    settings: u64,
    not_alone: u64,
    /// Close looks between which the vCPU was switched in; and had not been marked before.
    arrivals: u64,
    unmarked: u64,
    /// Marked all the time, and yet it ran.
    lies: u64,
    /// Bits added to a byte that was set; after which the check did not tell; bytes that nobody had any reason for.
    added: u64,
    untold: u64,
    strange_bytes: u64,
}

struct Watched {
    vcpu: VcpuId,
    record: &'static Record,
    last: Option<Look>,
    steal: u64,
    odd_streak: u32,
    seen: Seen,
}

impl Watched {
    fn new(vcpu: VcpuId) -> Self {
        let record = record_of(vcpu);
        Self { vcpu, record, last: None, steal: 0, odd_streak: 0, seen: Seen::default() }
    }

    /// Looks once, and gives the cycles from the vCPU's last sign of life to its byte just seen set.
    fn look(&mut self, close: u64) -> Option<u64> {
        let began = clock::now();
        // In this order: whoever reads 1 has read the last sign of life before it.
        let byte = self.record.preempted();
        let version = self.record.version();
        let beat = REPORT.vcpus[self.vcpu.index()].beat.load(Ordering::Acquire);
        let look = Look { began, byte, version, beat };
        let ended = clock::now();
        self.seen.looks += 1;
        self.seen.set += u64::from(byte != 0);
        self.seen.strange_bytes += u64::from(!matches!(byte, 0 | PREEMPTED) && byte != PREEMPTED | FLUSH);
        self.read_steal();
        let last = self.last.replace(look)?;
        self.compare_versions(last, look);
        self.seen.lies +=
            u64::from(last.byte != 0 && byte != 0 && last.version == version && last.beat != beat);
        // From the begin of the one to the end of the other: an absence in the middle of a look counts, too.
        if ended.wrapping_sub(last.began) > close {
            return None;
        }
        if version != last.version && version.is_multiple_of(2) && last.version.is_multiple_of(2) {
            self.seen.arrivals += 1;
            self.seen.unmarked += u64::from(last.byte == 0);
        }
        if last.byte != 0 || byte == 0 {
            return None;
        }
        self.seen.settings += 1;
        self.seen.not_alone += u64::from(version != last.version);
        self.add_a_bit();
        Some(ended.wrapping_sub(beat))
    }

    /// One attempt of the protocol: even, and the same afterwards.
    fn read_steal(&mut self) {
        if let Some(steal) = self.record.try_steal_ns() {
            self.seen.reads += 1;
            self.seen.back += u64::from(steal < self.steal);
            self.steal = steal;
        }
    }

    fn compare_versions(&mut self, last: Look, look: Look) {
        let step = look.version.wrapping_sub(last.version);
        if step == 0 && !look.version.is_multiple_of(2) {
            self.odd_streak += 1;
            self.seen.stuck_odd += u64::from(self.odd_streak == PATIENCE);
        } else {
            self.odd_streak = 0;
        }
        if step != 0 {
            self.seen.updates += 1;
            // More than half way round is back.
            self.seen.strange_updates += u64::from(step > u32::MAX / 2);
        }
    }

    /// Does what a guest does that wants a flush: adds a bit while the vCPU is off its CPU. The check tells of it all the
    /// same, unless the vCPU is back.
    fn add_a_bit(&mut self) {
        if self.record.add_to_byte(PREEMPTED, FLUSH) {
            self.seen.added += 1;
            let is_told = Save0::is_preempted(self.vcpu) || self.record.preempted() == 0;
            self.seen.untold += u64::from(!is_told);
        }
    }
}

impl Seen {
    fn add(&mut self, other: &Self) {
        let Self {
            looks,
            set,
            reads,
            back,
            updates,
            strange_updates,
            stuck_odd,
            settings,
            not_alone,
            arrivals,
            unmarked,
            lies,
            added,
            untold,
            strange_bytes,
        } = other;
        for (sum, part) in [
            (&mut self.looks, looks),
            (&mut self.set, set),
            (&mut self.reads, reads),
            (&mut self.back, back),
            (&mut self.updates, updates),
            (&mut self.strange_updates, strange_updates),
            (&mut self.stuck_odd, stuck_odd),
            (&mut self.settings, settings),
            (&mut self.not_alone, not_alone),
            (&mut self.arrivals, arrivals),
            (&mut self.unmarked, unmarked),
            (&mut self.lies, lies),
            (&mut self.added, added),
            (&mut self.untold, untold),
            (&mut self.strange_bytes, strange_bytes),
        ] {
            *sum += part;
        }
    }

    fn judge(&self, part: Part) {
        judge(Assertion::NeverTorn, self.reads, self.back == 0);
        judge(Assertion::VersionGrows, self.updates, self.strange_updates == 0);
        judge(Assertion::VersionEven, 0, self.stuck_odd == 0);
        // A vCPU may come and go between two looks, however close: a few such do not count, if they are few.
        let is_few = |exceptions: u64, of: u64| exceptions <= of / 20;
        judge(Assertion::ByteAlone, self.settings, is_few(self.not_alone, self.settings));
        judge(Assertion::PreemptedIsSeen, self.arrivals, is_few(self.unmarked, self.arrivals));
        judge(Assertion::PreemptedIsSeen, 0, self.lies <= self.looks / 1000);
        judge(Assertion::ByteIsOneOrZero, self.added, self.strange_bytes == 0);
        judge(Assertion::WholeByteCounts, self.added, self.untold == 0);
        part.report.other_samples.store(self.looks, Ordering::Relaxed);
        part.report.other_set.store(self.set, Ordering::Relaxed);
    }
}

const _: () = assert!(MOST_WATCHED < MAX_VCPUS);
