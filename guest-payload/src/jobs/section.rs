//! Sections: what a lock guards, and the proof that it excludes.
//!
//! Each lock has one section. A writer asserts on entry and on exit that it is alone; a reader
//! asserts that no writer is in. A plain counter counts the writers: it is right only if they
//! exclude each other.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use guest_payload::cpu::Cpu;
use guest_payload::work::work;
use protocol::payload::report::add;

use crate::metal::clock;

/// What one lock guards, on cache lines of its own.
#[repr(align(128))]
pub(super) struct Section {
    /// The writer inside, as one more than its index; 0 for none.
    writer: AtomicU32,
    /// Number of readers inside.
    readers: AtomicU32,
    /// Number of writers so far, counted by a plain load and store.
    written: AtomicU64,
    /// Time of the last exit (cycles).
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

    /// Returns the time of the last exit (cycles of the clock); 0 if there was none.
    pub(super) fn left(&self) -> u64 {
        self.left.load(Ordering::Relaxed)
    }

    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Works inside for `cycles`, alone.
    pub(super) fn write(&self, cpu: &impl Cpu, cycles: u64) {
        let name = u32::from(cpu.id().apic_id()) + 1;
        assert!(self.writer.load(Ordering::Relaxed) == 0, "the lock admitted two writers");
        assert!(self.readers.load(Ordering::Relaxed) == 0, "the lock admitted a writer beside readers");
        self.writer.store(name, Ordering::Relaxed);
        work(cpu, cycles);
        add(&self.written, 1);
        assert!(self.writer.load(Ordering::Relaxed) == name, "the lock admitted another vCPU");
        self.writer.store(0, Ordering::Relaxed);
        self.left.store(clock::now(), Ordering::Relaxed);
    }

    /// Works inside for `cycles`, perhaps beside other readers.
    pub(super) fn read(&self, cpu: &impl Cpu, cycles: u64) {
        self.readers.fetch_add(1, Ordering::SeqCst);
        assert!(self.writer.load(Ordering::SeqCst) == 0, "the lock admitted a reader beside a writer");
        work(cpu, cycles);
        assert!(self.writer.load(Ordering::SeqCst) == 0, "the lock admitted a writer beside a reader");
        self.left.store(clock::now(), Ordering::Relaxed);
        self.readers.fetch_sub(1, Ordering::SeqCst);
    }
}
