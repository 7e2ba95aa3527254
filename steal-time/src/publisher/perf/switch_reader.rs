//! The switch reader of one vCPU: turns perf's records of the vCPU's thread into `preempted`.

use std::ffi::c_int;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use protocol::VcpuId;

use crate::publisher::record::GuestRecord;
use crate::publisher::{Counts, bpf};
use host::perf::{PerfError, SwitchKind, SwitchLog};
use host::sync::{lock, read, write};
use host::thread::own_tid;

/// The switch log of one vCPU thread, shared by that thread and all threads that read the log.
#[derive(Debug)]
pub(super) struct SwitchReader {
    vcpu: VcpuId,
    log: SwitchLog,
    /// Held while a thread drains the log and stores `preempted`. The vCPU's thread holds it to set
    /// or take back the record: after that no other thread stores to the old one.
    state: Mutex<ReaderState>,
    /// The head of the log at the vCPU thread's last steal update.
    published_head: AtomicU64,
}

#[derive(Debug, Default)]
struct ReaderState {
    /// The record whose `preempted` is stored.
    record: Option<Arc<GuestRecord>>,
    counts: bpf::SwitchCounts,
}

impl SwitchReader {
    /// Logs the switches of the calling thread, that of `vcpu`, in a ring of `pages` pages. Each
    /// record sends it `signal`.
    pub(super) fn of_this_thread(vcpu: VcpuId, pages: usize, signal: c_int) -> Result<Self, PerfError> {
        let log = SwitchLog::of_thread(own_tid(), pages)?;
        log.signal_this_thread(signal)?;
        Ok(Self { vcpu, log, state: Mutex::default(), published_head: AtomicU64::new(0) })
    }

    /// Sets the record whose `preempted` other threads store; `None` for none. On return the old
    /// one is no longer written.
    pub(super) fn set_record(&self, record: Option<Arc<GuestRecord>>) {
        lock(&self.state).record = record;
    }

    /// Returns whether the thread was switched since the last call. The thread itself calls it, and
    /// then updates its steal.
    pub(super) fn take_switched(&self) -> bool {
        let head = self.log.head();
        self.published_head.swap(head, Ordering::Relaxed) != head
    }

    /// Drains the log, and stores `preempted` by its last record.
    ///
    /// If another thread is reading, this call leaves the rest to it: a reader checks the log again
    /// before it returns. (A vCPU that is preempted during the few instructions of
    /// [`set_record`](Self::set_record) stays unnoticed until it runs again.)
    pub(super) fn observe(&self) {
        while let Ok(mut state) = self.state.try_lock() {
            if self.log.head() == self.log.tail() {
                break;
            }
            state.read(&self.log);
        }
    }

    /// Returns the counts of switches and of lost records.
    pub(super) fn counts(&self) -> Counts {
        Counts { program: lock(&self.state).counts, lost: self.log.lost(), ..Counts::default() }
    }
}

impl ReaderState {
    fn read(&mut self, log: &SwitchLog) {
        let mut last = None;
        log.drain(|switch| {
            match switch.kind {
                SwitchKind::In => self.counts.sched_in += 1,
                SwitchKind::Preempted => self.counts.sched_out += 1,
                SwitchKind::Blocked => self.counts.blocked += 1,
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

impl AsRawFd for SwitchReader {
    fn as_raw_fd(&self) -> RawFd {
        self.log.as_raw_fd()
    }
}

/// The switch readers of all vCPUs of a VM.
#[derive(Debug, Default)]
pub(super) struct SwitchReaders(RwLock<Vec<Arc<SwitchReader>>>);

impl SwitchReaders {
    pub(super) fn add(&self, reader: Arc<SwitchReader>) {
        write(&self.0).push(reader);
    }

    pub(super) fn remove(&self, reader: &Arc<SwitchReader>) {
        write(&self.0).retain(|other| !Arc::ptr_eq(other, reader));
    }

    /// Returns the reader of `vcpu`.
    pub(super) fn of(&self, vcpu: VcpuId) -> Option<Arc<SwitchReader>> {
        read(&self.0).iter().find(|reader| reader.vcpu == vcpu).cloned()
    }

    /// Drains the logs of all readers but `own`.
    pub(super) fn observe_others(&self, own: &Arc<SwitchReader>) {
        let readers = read(&self.0);
        for reader in readers.iter().filter(|other| !Arc::ptr_eq(other, own)) {
            reader.observe();
        }
    }
}
