//! Sections: what a lock guards, and how that shows whether it does.
//!
//! Each lock has one. Who enters to write asserts that nobody is in, and on leaving that nobody has come; who enters to read
//! asserts that no writer is in. A plain counter in it counts writers: it is right only if they were alone.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use guest_payload::cpu::Cpu;
use guest_payload::work::work;
use protocol::report::add;

use crate::metal::clock;

/// See the module. On cache lines of its own.
#[repr(align(128))]
pub(super) struct Section {
    /// Who is in to write: 0, or one more than the vCPU's index.
    writer: AtomicU32,
    /// How many are in to read.
    readers: AtomicU32,
    /// Writers so far: a plain load and store.
    written: AtomicU64,
    /// When it was last left (cycles).
    left: AtomicU64,
}

impl Section {
    pub(super) const fn new() -> Self {
        Self {
            writer: AtomicU32::new(0),
            readers: AtomicU32::new(0),
            written: AtomicU64::new(0),
            left: AtomicU64::new(0),
        }
    }

    /// When somebody was last through (cycles of the clock); 0 if nobody was.
    pub(super) fn left(&self) -> u64 {
        self.left.load(Ordering::Relaxed)
    }

    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Works inside for `cycles`, alone.
    pub(super) fn write(&self, cpu: &impl Cpu, cycles: u64) {
        let name = u32::from(cpu.id().apic_id()) + 1;
        assert!(self.writer.load(Ordering::Relaxed) == 0, "the lock let two in");
        assert!(self.readers.load(Ordering::Relaxed) == 0, "the lock let a writer in to readers");
        self.writer.store(name, Ordering::Relaxed);
        work(cpu, cycles);
        add(&self.written, 1);
        assert!(self.writer.load(Ordering::Relaxed) == name, "the lock let somebody else in");
        self.writer.store(0, Ordering::Relaxed);
        self.left.store(clock::now(), Ordering::Relaxed);
    }

    /// Works inside for `cycles`, perhaps with other readers.
    pub(super) fn read(&self, cpu: &impl Cpu, cycles: u64) {
        self.readers.fetch_add(1, Ordering::SeqCst);
        assert!(self.writer.load(Ordering::SeqCst) == 0, "the lock let a reader in to a writer");
        work(cpu, cycles);
        assert!(self.writer.load(Ordering::SeqCst) == 0, "the lock let a writer in to a reader");
        self.left.store(clock::now(), Ordering::Relaxed);
        self.readers.fetch_sub(1, Ordering::SeqCst);
    }
}
