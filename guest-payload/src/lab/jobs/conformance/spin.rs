//! Spin: every vCPU spins, reads its own record, and watches all others.
//!
//! No vCPU halts here. So a vCPU that is scheduled in was preempted before; with more vCPUs than
//! CPUs, some always are. Each vCPU stores a heartbeat, the time, to show that it runs. Two looks
//! at another vCPU count only if they lie close together: a watcher that was off its own CPU in
//! between has missed what happened.

use core::sync::atomic::Ordering;

use guest_payload::check::{Check, Save0};
use guest_payload::steal_time::{RECORDS, Record, record_of};
use protocol::kvm::PREEMPTED;
use protocol::payload::conformance::Assertion;
use protocol::{MAX_VCPUS, VcpuId};

use super::verdict::{expect, judge};
use crate::jobs::frame::Part;
use crate::metal::clock;
use crate::metal::entry::REPORT;

/// The bit that a guest may add to `preempted` of a preempted vCPU (`KVM_VCPU_FLUSH_TLB`).
const FLUSH: u8 = 2;

/// Limit of vCPUs that one vCPU watches.
const MAX_WATCHED: usize = 8;

/// Longest time between two looks that lie close together.
const CLOSE_NS: u64 = 5_000;

/// Looks at an odd version after which a reader would give up.
const MAX_ODD_LOOKS: u32 = 1024;

/// Looks at the own record between two looks at its padding.
const PADDING_INTERVAL: u64 = 256;

/// Fill of the paddings.
const FILL: u8 = 0x5c;

/// Fills the padding, before the record is registered.
pub(super) fn prepare(id: VcpuId) {
    record_of(id).fill_padding(FILL);
}

pub(super) fn run(part: Part) {
    let me = part.machine.vcpu.id;
    let others = VcpuId::first(part.machine.vcpus).cycle().skip(me.index() + 1);
    let mut watched = [const { None }; MAX_WATCHED];
    for (place, vcpu) in watched.iter_mut().zip(others.take(part.machine.vcpus - 1)) {
        *place = Some(Watched::new(vcpu));
    }
    let close = clock::cycles(CLOSE_NS, part.machine.vcpu.khz);
    let mut own = Own::new(me);
    while !part.window.is_over(part.heartbeat()) && clock::now() < part.window.opens {}
    part.open();
    while !part.window.is_over(part.heartbeat()) {
        own.look();
        for other in watched.iter_mut().flatten() {
            if let Some(latency) = other.look(close) {
                part.report.record_wait(latency);
            }
        }
    }
    part.close();
    own.judge(part);
    let mut total = Counts::default();
    watched.iter().flatten().for_each(|other| total.add(&other.counts));
    total.judge(part);
}

/// The own record, as its vCPU sees it.
struct Own {
    record: &'static Record,
    looks: u64,
    set: u64,
    odd: u64,
    steal: u64,
    decreased: u64,
    padding: u64,
}

impl Own {
    fn new(id: VcpuId) -> Self {
        Self { record: record_of(id), looks: 0, set: 0, odd: 0, steal: 0, decreased: 0, padding: 0 }
    }

    fn look(&mut self) {
        self.looks += 1;
        self.set += u64::from(self.record.preempted() != 0);
        self.odd += u64::from(!self.record.version().is_multiple_of(2));
        if let Some(steal) = self.record.steal_ns() {
            self.decreased += u64::from(steal < self.steal);
            self.steal = steal;
        }
        if self.looks.is_multiple_of(PADDING_INTERVAL) {
            let is_kept = self.record.flags() == 0 && self.record.padding_is(FILL);
            self.padding += u64::from(!is_kept);
        }
    }

    fn judge(&self, part: Part) {
        judge(Assertion::OwnByteClear, self.looks, self.set == 0);
        judge(Assertion::VersionEven, self.looks, self.odd == 0);
        judge(Assertion::StealNeverBack, self.looks, self.decreased == 0);
        judge(Assertion::OnlyTheWords, self.looks / PADDING_INTERVAL, self.padding == 0);
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

/// Counts of what was observed of other vCPUs.
#[derive(Clone, Copy, Default)]
struct Counts {
    looks: u64,
    set: u64,
    /// Reads of steal by the version protocol, and those in which it had decreased.
    reads: u64,
    decreased: u64,
    /// Changes of the version, and those that went backwards.
    updates: u64,
    backward_updates: u64,
    /// Times that a reader would have given up on an odd version.
    stuck_odd: u64,
    /// Close looks between which `preempted` was set, and those with another version.
    settings: u64,
    with_update: u64,
    /// Close looks between which the vCPU was scheduled in, and those without `preempted` before.
    sched_ins: u64,
    unmarked: u64,
    /// Looks at which `preempted` had stayed set although the vCPU ran.
    set_while_running: u64,
    /// Bits added to a set byte; times that the check then returned false; bytes of an invalid
    /// value.
    added: u64,
    missed_by_check: u64,
    invalid_bytes: u64,
}

struct Watched {
    vcpu: VcpuId,
    record: &'static Record,
    last: Option<Look>,
    steal: u64,
    odd_streak: u32,
    counts: Counts,
}

impl Watched {
    fn new(vcpu: VcpuId) -> Self {
        let record = record_of(vcpu);
        Self { vcpu, record, last: None, steal: 0, odd_streak: 0, counts: Counts::default() }
    }

    /// Looks once. If `preempted` was just set, returns the time since the last heartbeat (cycles).
    fn look(&mut self, close: u64) -> Option<u64> {
        let began = clock::now();
        // The order matters: a reader that finds 1 then finds the last heartbeat before it.
        let byte = self.record.preempted();
        let version = self.record.version();
        let beat = REPORT.vcpus[self.vcpu.index()].beat.load(Ordering::Acquire);
        let look = Look { began, byte, version, beat };
        let ended = clock::now();
        self.counts.looks += 1;
        self.counts.set += u64::from(byte != 0);
        self.counts.invalid_bytes += u64::from(!matches!(byte, 0 | PREEMPTED) && byte != PREEMPTED | FLUSH);
        self.read_steal();
        let last = self.last.replace(look)?;
        self.compare_versions(last, look);
        self.counts.set_while_running +=
            u64::from(last.byte != 0 && byte != 0 && last.version == version && last.beat != beat);
        // From the begin of one look to the end of the other, so that an absence within a look
        // counts too.
        if ended.wrapping_sub(last.began) > close {
            return None;
        }
        if version != last.version && version.is_multiple_of(2) && last.version.is_multiple_of(2) {
            self.counts.sched_ins += 1;
            self.counts.unmarked += u64::from(last.byte == 0);
        }
        if last.byte != 0 || byte == 0 {
            return None;
        }
        self.counts.settings += 1;
        self.counts.with_update += u64::from(version != last.version);
        self.add_a_bit();
        Some(ended.wrapping_sub(beat))
    }

    /// Reads steal in one attempt: the version is even, and the same afterwards.
    fn read_steal(&mut self) {
        if let Some(steal) = self.record.try_steal_ns() {
            self.counts.reads += 1;
            self.counts.decreased += u64::from(steal < self.steal);
            self.steal = steal;
        }
    }

    fn compare_versions(&mut self, last: Look, look: Look) {
        let step = look.version.wrapping_sub(last.version);
        if step == 0 && !look.version.is_multiple_of(2) {
            self.odd_streak += 1;
            self.counts.stuck_odd += u64::from(self.odd_streak == MAX_ODD_LOOKS);
        } else {
            self.odd_streak = 0;
        }
        if step != 0 {
            self.counts.updates += 1;
            // A step of more than half the range is a decrease.
            self.counts.backward_updates += u64::from(step > u32::MAX / 2);
        }
    }

    /// Adds a bit while the vCPU is off its CPU, as a guest does that wants a TLB flush. The check
    /// must still return true, unless the vCPU is back.
    fn add_a_bit(&mut self) {
        if self.record.add_preempted_bits(PREEMPTED, FLUSH) {
            self.counts.added += 1;
            let is_true = Save0::is_preempted(self.vcpu) || self.record.preempted() == 0;
            self.counts.missed_by_check += u64::from(!is_true);
        }
    }
}

impl Counts {
    fn add(&mut self, other: &Self) {
        let Self {
            looks,
            set,
            reads,
            decreased,
            updates,
            backward_updates,
            stuck_odd,
            settings,
            with_update,
            sched_ins,
            unmarked,
            set_while_running,
            added,
            missed_by_check,
            invalid_bytes,
        } = other;
        for (sum, part) in [
            (&mut self.looks, looks),
            (&mut self.set, set),
            (&mut self.reads, reads),
            (&mut self.decreased, decreased),
            (&mut self.updates, updates),
            (&mut self.backward_updates, backward_updates),
            (&mut self.stuck_odd, stuck_odd),
            (&mut self.settings, settings),
            (&mut self.with_update, with_update),
            (&mut self.sched_ins, sched_ins),
            (&mut self.unmarked, unmarked),
            (&mut self.set_while_running, set_while_running),
            (&mut self.added, added),
            (&mut self.missed_by_check, missed_by_check),
            (&mut self.invalid_bytes, invalid_bytes),
        ] {
            *sum += part;
        }
    }

    fn judge(&self, part: Part) {
        judge(Assertion::NeverTorn, self.reads, self.decreased == 0);
        judge(Assertion::VersionGrows, self.updates, self.backward_updates == 0);
        judge(Assertion::VersionEven, 0, self.stuck_odd == 0);
        // A vCPU may come and go between two looks, however close. A few such cases do not count.
        let is_few = |exceptions: u64, of: u64| exceptions <= of / 20;
        judge(Assertion::ByteAlone, self.settings, is_few(self.with_update, self.settings));
        judge(Assertion::PreemptedIsSeen, self.sched_ins, is_few(self.unmarked, self.sched_ins));
        judge(Assertion::PreemptedIsSeen, 0, self.set_while_running <= self.looks / 1000);
        judge(Assertion::ByteIsOneOrZero, self.added, self.invalid_bytes == 0);
        judge(Assertion::WholeByteCounts, self.added, self.missed_by_check == 0);
        part.report.other_samples.store(self.looks, Ordering::Relaxed);
        part.report.other_set.store(self.set, Ordering::Relaxed);
    }
}

const _: () = assert!(MAX_WATCHED < MAX_VCPUS);
