//! What those who read the log of a vCPU's thread, and that thread, share.

use std::ffi::c_int;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use protocol::VcpuId;

use crate::publisher::record::GuestRecord;
use crate::publisher::{Counts, bpf};
use host::perf::{PerfError, SwitchKind, SwitchLog};
use host::thread::own_tid;

/// See the module.
#[derive(Debug)]
pub(super) struct Desk {
    vcpu: VcpuId,
    log: SwitchLog,
    /// Held by whoever reads the log and stores the byte; by the vCPU's thread when it gives the record or takes it back,
    /// so that after that nobody else stores anything.
    reading: Mutex<Reading>,
    /// How much of the log had been written when the vCPU's thread last told its steal.
    told: AtomicU64,
}

#[derive(Debug, Default)]
struct Reading {
    /// Where the byte is stored.
    record: Option<Arc<GuestRecord>>,
    outs: u64,
    ins: u64,
    sleeps: u64,
}

impl Desk {
    /// For `vcpu` and the calling thread, which gets `signal` at each record, with a ring of `pages` pages.
    pub(super) fn of_this_thread(vcpu: VcpuId, pages: usize, signal: c_int) -> Result<Self, PerfError> {
        let log = SwitchLog::of_thread(own_tid(), pages)?;
        log.signal_this_thread(signal)?;
        Ok(Self { vcpu, log, reading: Mutex::default(), told: AtomicU64::new(0) })
    }

    /// The record whose byte others store from now on; `None` for none. When this returns no other is written.
    pub(super) fn share(&self, record: Option<Arc<GuestRecord>>) {
        self.lock().record = record;
    }

    /// Whether the vCPU's thread, which is about to tell its steal, was switched since this was last asked.
    pub(super) fn was_switched(&self) -> bool {
        let written = self.log.written();
        self.told.swap(written, Ordering::Relaxed) != written
    }

    /// Reads the log to its end, and makes the byte say what its last record means. Whoever finds somebody else reading
    /// leaves it to them: who reads looks again before it ends. (A vCPU that loses its CPU in the few instructions in which
    /// it gives its record is overlooked, until it is back.)
    pub(super) fn observe(&self) {
        while let Ok(mut reading) = self.reading.try_lock() {
            if self.log.written() == self.log.read() {
                break;
            }
            reading.read(&self.log);
        }
    }

    pub(super) fn counts(&self) -> Counts {
        let Reading { outs, ins, sleeps, .. } = *self.lock();
        let program = bpf::Counts { outs, ins, sleeps, ..bpf::Counts::default() };
        Counts { program, lost: self.log.lost(), ..Counts::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Reading> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reading {
    fn read(&mut self, log: &SwitchLog) {
        let mut last = None;
        log.drain(|switch| {
            match switch.kind {
                SwitchKind::In => self.ins += 1,
                SwitchKind::Preempted => self.outs += 1,
                SwitchKind::Slept => self.sleeps += 1,
            }
            last = Some(switch.kind);
        });
        match (last, &self.record) {
            (Some(SwitchKind::Preempted), Some(record)) => record.set_preempted(),
            (Some(_), Some(record)) => drop(record.clear_preempted()),
            _ => {}
        }
    }
}

impl AsRawFd for Desk {
    fn as_raw_fd(&self) -> RawFd {
        self.log.as_raw_fd()
    }
}

/// Those of all vCPUs.
#[derive(Debug, Default)]
pub(super) struct Desks(RwLock<Vec<Arc<Desk>>>);

impl Desks {
    pub(super) fn add(&self, desk: Arc<Desk>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).push(desk);
    }

    pub(super) fn remove(&self, desk: &Arc<Desk>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).retain(|other| !Arc::ptr_eq(other, desk));
    }

    /// The one of `vcpu`.
    pub(super) fn of(&self, vcpu: VcpuId) -> Option<Arc<Desk>> {
        let desks = self.0.read().unwrap_or_else(PoisonError::into_inner);
        desks.iter().find(|desk| desk.vcpu == vcpu).cloned()
    }

    /// Looks at all but one.
    pub(super) fn observe_others(&self, own: &Arc<Desk>) {
        let desks = self.0.read().unwrap_or_else(PoisonError::into_inner);
        for desk in desks.iter().filter(|other| !Arc::ptr_eq(other, own)) {
            desk.observe();
        }
    }
}
