//! The BPF publisher's program: loads it, attaches it, and shares memory with it.
//!
//! The program (`steal_time.bpf.c`) runs at `sched_switch` and writes each vCPU's record from
//! inside the context switch, so that another vCPU sees `preempted` a fraction of a microsecond
//! after the host has taken the CPU. The monitor attaches each vCPU thread
//! ([`Program::attach_current_thread`]) and shares two maps with the program:
//!
//! - a [`Slot`] per vCPU: the address of its record, and the program's counts;
//! - [`RecordPages`]: the memory that replaces the guest pages which hold records.
//!
//! On a kernel without BTF the classic program (`steal_time_classic.bpf.c`) takes its place, and
//! publishes `preempted` alone.
//!
//! Loading goes through bpf(2) directly, and takes 1.6 ms. A general loader parses all of the
//! kernel's BTF twice, which takes 24 to 40 ms.
//!
//! | file | task |
//! |---|---|
//! | `kernel_btf.rs` | finds the offsets of the kernel fields that the program reads |
//! | `btf_writer.rs`, `object.rs` | relocate the committed object for these offsets |
//! | `classic.rs` | finds the tracepoints of the classic program |
//! | `loader.rs`, `syscall.rs` | create maps, load and attach programs |
//! | `threads.rs` | maps threads to vCPUs |
//! | `cost.rs` | measures the program's run time per switch |
//! | `mapping.rs`, `slot.rs`, `pages.rs` | the shared memory |
//!
//! Nothing is pinned in a BPF file system: the kernel frees programs and maps with the last
//! descriptor, also after `SIGKILL`.

mod btf_writer;
mod classic;
mod cost;
mod error;
mod kernel_btf;
mod loader;
mod mapping;
mod object;
mod pages;
mod slot;
mod syscall;
#[cfg(test)]
mod tests;
mod threads;

use std::marker::PhantomData;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use protocol::VcpuId;
use protocol::kvm::PREEMPTED;

use crate::publisher::kind::PublisherKind;
use classic::tracepoints;
pub use cost::{EmptyProgram, RunStats, RunTime};
pub use error::BpfError;
use host::perf::attach_to_tracepoint;
use kernel_btf::KernelLayout;
use loader::{Loader, Maps, Stages, attach};
use mapping::Mapping;
use object::{
    BpfObject, CLASSIC_HEAL, CLASSIC_SWITCH, CLASSIC_TID, HEAL, SWITCH, VCPU_OF_TASK, VCPU_OF_THREAD,
};
pub use pages::RecordPages;
pub use slot::{Inits, RecordAddr, Slot, SwitchCounts};
use syscall::Hook;
use threads::{ThreadKey, ThreadMap};

/// A loaded program, attached to its tracepoints. Dropping it detaches it.
#[derive(Debug)]
pub struct Program {
    _links: Vec<OwnedFd>,
    init_links: Option<[OwnedFd; 2]>,
    switch: OwnedFd,
    threads: ThreadMap,
    slots: Mapping<Slot>,
    pages: RecordPages,
    timings: Vec<(&'static str, Duration)>,
}

impl Program {
    /// Loads the program for `vcpus` vCPUs, with `pages` elements in the page map, and attaches it.
    ///
    /// # Errors
    /// [`BpfError`] names what the kernel lacks or refuses, and a cure. All that was created is
    /// freed then.
    pub fn load(vcpus: usize, pages: usize) -> Result<Self, BpfError> {
        ThreadMap::check_pidfd_support()?;
        let mut stages = Stages::begin();
        let layout = KernelLayout::of_running_kernel()?;
        stages.end("kernel BTF");
        let object = BpfObject::for_kernel(&layout).map_err(BpfError::relocation)?;
        stages.end("object");
        let mut loader = Loader::new(object, stages)?;
        let maps = loader.make_maps((VCPU_OF_TASK, 0), vcpus, pages)?;

        let [on_switch, on_fpu, on_timer] = layout.tracepoints.map(Hook::Typed);
        let switch = loader.program(SWITCH, on_switch)?;
        loader.stages.end("switch program");
        let heal_on_fpu = loader.program(HEAL, on_fpu)?;
        let heal_on_timer = loader.program(HEAL, on_timer)?;
        loader.stages.end("heal programs");

        let links = vec![
            attach(switch.as_fd(), "attach a BPF program to sched_switch")?,
            attach(heal_on_fpu.as_fd(), "attach a BPF program to x86_fpu_regs_activated")?,
            attach(heal_on_timer.as_fd(), "attach a BPF program to hrtimer_expire_entry")?,
        ];
        loader.stages.end("attach");
        Self::finish(loader, links, switch, maps, ThreadMap::by_task)
    }

    /// Loads and attaches the classic program, which publishes `preempted` alone, and needs neither
    /// BTF nor Linux 6.9.
    ///
    /// # Errors
    /// See [`load`](Self::load).
    pub fn load_classic(vcpus: usize, pages: usize) -> Result<Self, BpfError> {
        let mut stages = Stages::begin();
        let [on_switch, on_fpu, on_timer] = tracepoints()?;
        stages.end("tracefs");
        let object = BpfObject::classic().map_err(BpfError::relocation)?;
        stages.end("object");
        let mut loader = Loader::new(object, stages)?;
        let maps = loader.make_maps((VCPU_OF_THREAD, vcpus), vcpus, pages)?;

        let switch = loader.program(CLASSIC_SWITCH, Hook::Record)?;
        loader.stages.end("switch program");
        let heal = loader.program(CLASSIC_HEAL, Hook::Record)?;
        let tid = loader.program(CLASSIC_TID, Hook::Raw)?;
        loader.stages.end("heal programs");

        let attach = |program: &OwnedFd, tracepoint, what| {
            attach_to_tracepoint(program.as_fd(), tracepoint).map_err(BpfError::from_kernel(what))
        };
        let links = vec![
            attach(&switch, on_switch, "attach a BPF program to sched/sched_switch")?,
            attach(&heal, on_fpu, "attach a BPF program to x86_fpu/x86_fpu_regs_activated")?,
            attach(&heal, on_timer, "attach a BPF program to timer/hrtimer_expire_entry")?,
        ];
        loader.stages.end("attach");
        Self::finish(loader, links, switch, maps, |map| ThreadMap::by_tid(map, tid))
    }

    /// Attaches the programs that detect INIT, and assembles the result.
    fn finish(
        mut loader: Loader,
        links: Vec<OwnedFd>,
        switch: OwnedFd,
        maps: Maps,
        threads: impl FnOnce(OwnedFd) -> ThreadMap,
    ) -> Result<Self, BpfError> {
        let init_links = loader.attach_to_init()?;
        loader.stages.end("INIT programs");
        let Maps { threads: map, slots, pages, .. } = maps;
        let (threads, timings) = (threads(map), loader.stages.ended);
        Ok(Self { _links: links, init_links, switch, threads, slots, pages, timings })
    }

    /// Returns the publisher that this program serves.
    pub fn kind(&self) -> PublisherKind {
        if self.is_classic() { PublisherKind::BpfClassic } else { PublisherKind::Bpf }
    }

    /// Whether this is the classic program, which leaves version and steal to the vCPU's thread.
    pub fn is_classic(&self) -> bool {
        self.threads.is_by_tid()
    }

    /// Attaches the calling thread as the thread of `vcpu`, until the result is dropped.
    ///
    /// The program counts its switches in [`slot`](Self::slot) from now on. It publishes nothing
    /// before [`AttachedThread::publish`].
    ///
    /// # Errors
    /// [`BpfError::NoSuchVcpu`] if the program was loaded for fewer vCPUs; [`BpfError::Kernel`] if
    /// the thread is attached already.
    pub fn attach_current_thread(&self, vcpu: VcpuId) -> Result<AttachedThread<'_>, BpfError> {
        let vcpus = self.slots.len();
        let slot = self.slots.get(vcpu.index()).ok_or(BpfError::NoSuchVcpu { vcpu, vcpus })?;

        slot.set_on_cpu();
        let thread = self.threads.add_this_thread(vcpu)?;
        Ok(AttachedThread { program: self, slot, thread, _not_send: PhantomData })
    }

    /// Returns the slot of a vCPU, in memory shared with the program.
    ///
    /// # Panics
    /// If the program was loaded for fewer vCPUs.
    pub fn slot(&self, vcpu: VcpuId) -> &Slot {
        &self.slots[vcpu.index()]
    }

    /// Returns the memory that replaces guest pages which hold records.
    pub fn pages(&self) -> &RecordPages {
        &self.pages
    }

    /// Whether the program detects INIT. It needs KVM's tracepoints `kvm_apic_ipi` and
    /// `kvm_apic_accept_irq`.
    pub fn detects_init(&self) -> bool {
        self.init_links.is_some()
    }

    /// Returns the run time of the program at `sched_switch`, accumulated while [`RunStats`] was
    /// enabled.
    ///
    /// # Errors
    /// [`BpfError`] of bpf(2).
    pub fn switch_time(&self) -> Result<RunTime, BpfError> {
        RunTime::of(self.switch.as_fd())
    }

    /// Returns the stages of loading, with their durations.
    pub fn timings(&self) -> &[(&'static str, Duration)] {
        &self.timings
    }
}

/// A vCPU thread that is attached to the program. Dropping it detaches the thread.
///
/// It is not `Send`, and only it changes the address of the vCPU's record. The program runs inside
/// the switches and interrupts of this same thread, so each call here is atomic for the program. A
/// call from another thread could interleave with a publication.
#[derive(Debug)]
pub struct AttachedThread<'program> {
    program: &'program Program,
    slot: &'program Slot,
    thread: ThreadKey,
    _not_send: PhantomData<*const ()>,
}

impl AttachedThread<'_> {
    /// Marks this thread's run delay up to `run_delay_ns`, and all descheduled time, as contained
    /// in steal.
    ///
    /// `run_delay_ns` is the second field of `/proc/thread-self/schedstat`. Returns the time (ns)
    /// that steal did not contain before, for the caller to add or to drop. Called before
    /// [`publish`](Self::publish): the program continues from there.
    pub fn account(&self, run_delay_ns: u64) -> u64 {
        self.slot.account(run_delay_ns)
    }

    /// Starts publication into the record at `addr`. Steal grows from the value that it has there.
    pub fn publish(&self, addr: RecordAddr) {
        self.slot.publish(addr);
    }

    /// Stops publication. The record keeps its contents, and the program does not write it again.
    pub fn withdraw(&self) {
        self.slot.withdraw();
    }

    /// Marks the vCPU as descheduled by the monitor: sets `preempted` until
    /// [`schedule`](Self::schedule), whatever the thread does meanwhile.
    ///
    /// [`Slot::add_descheduled_ns`] adds the time to steal.
    pub fn deschedule(&self) {
        // In this order: a timer interrupt in between would take a set `preempted` for a lost
        // switch-in, and clear it
        self.slot.set_descheduled();
        if let Some(byte) = self.preempted() {
            byte.store(PREEMPTED, Ordering::Release);
        }
    }

    /// Marks the vCPU as scheduled again: clears `preempted`, which the program maintains from now
    /// on.
    pub fn schedule(&self) {
        // In this order: while the flag is set, a preemption would leave `preempted` set
        self.slot.clear_descheduled();
        self.clear_preempted();
    }

    /// Clears `preempted` if it is set. Returns whether it was.
    ///
    /// Called right before the vCPU enters the guest, in case the host has lost the trace of a
    /// switch-in.
    pub fn clear_preempted(&self) -> bool {
        // Load first: the cache line stays shared with the vCPUs that poll it
        let set = self.preempted().filter(|byte| byte.load(Ordering::Relaxed) != 0);
        if let Some(byte) = set {
            byte.store(0, Ordering::Release);
        }
        set.is_some()
    }

    /// Returns the counts. They include this thread's latest switch-in, even if it was not traced.
    pub fn counts(&self) -> SwitchCounts {
        self.slot.count_this_sched_in();
        self.slot.counts()
    }

    /// Returns the vCPU's slot.
    pub fn slot(&self) -> &Slot {
        self.slot
    }

    fn preempted(&self) -> Option<&AtomicU8> {
        self.program.pages.preempted(self.slot.record_addr()?)
    }
}

impl Drop for AttachedThread<'_> {
    fn drop(&mut self) {
        self.program.threads.remove(&self.thread);
    }
}
