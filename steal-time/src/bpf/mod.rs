//! The BPF publisher: the scheduler itself keeps the records true.
//!
//! A program on `sched_switch` (`steal-time/bpf/steal_time.bpf.c`) writes each vCPU's record from inside the context
//! switch, so that another vCPU sees the byte a fraction of a microsecond after the host has taken the CPU away.
//! This module loads it, tells it which thread is which vCPU, and shares memory with it:
//!
//! - a [`Slot`] per vCPU: where its record lies, and what the program has counted;
//! - [`RecordPages`], which stand in for the guest pages that hold records.
//!
//! Where the kernel does not describe its types the classic program takes its place, and publishes the byte alone
//! (`steal-time/bpf/steal_time_classic.bpf.c`).
//!
//! From the object to the attached program it goes through bpf(2) directly, in 1.6 ms. A general loader parses the
//! whole BTF of the kernel, twice, and takes 24 to 40.
//!
//! | file | what it does |
//! |---|---|
//! | `kernel_btf.rs` | finds the kernel's offsets that the program needs |
//! | `btf_writer.rs`, `object.rs` | fit the committed object to them |
//! | `classic.rs` | finds the tracepoints of the classic program |
//! | `loader.rs`, `syscall.rs` | ask the kernel for maps and programs |
//! | `threads.rs` | tells the program which thread is which vCPU |
//! | `cost.rs` | says what the program takes of a switch |
//! | `mapping.rs`, `slot.rs`, `pages.rs` | the shared memory |
//!
//! Nothing is pinned: the kernel takes all of it back with the last descriptor, also after a `SIGKILL`.

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
use protocol::steal_time::PREEMPTED;

use crate::publisher::PublisherKind;
use classic::tracepoints;
pub use cost::{EmptyProgram, RunStats, RunTime};
pub use error::BpfError;
use host::perf::run_at_tracepoint;
pub use kernel_btf::KernelBtfError;
use kernel_btf::KernelLayout;
use loader::{Loader, Stages, attach};
use mapping::Mapping;
use object::{
    BpfObject, CLASSIC_HEAL, CLASSIC_SWITCH, CLASSIC_WHO, HEAL, SWITCH, VCPU_OF_TASK, VCPU_OF_THREAD,
};
pub use pages::RecordPages;
pub use slot::{Counts, Site, Slot};
use syscall::Hook;
use threads::{ThreadKey, Threads};

/// A program, loaded and attached. Dropping it detaches.
#[derive(Debug)]
pub struct Program {
    _links: Vec<OwnedFd>,
    init_links: Option<[OwnedFd; 2]>,
    switch: OwnedFd,
    threads: Threads,
    slots: Mapping<Slot>,
    pages: RecordPages,
    timings: Vec<(&'static str, Duration)>,
}

impl Program {
    /// Loads the program for `vcpus` vCPUs, with `pages` elements in the page map, and attaches it.
    ///
    /// # Errors
    /// [`BpfError`] says what the kernel lacks or refuses, and what to do about it. Nothing is left behind then.
    pub fn load(vcpus: usize, pages: usize) -> Result<Self, BpfError> {
        Threads::can_be_named()?;
        let mut stages = Stages::begin();
        let layout = KernelLayout::of_running_kernel()?;
        stages.end("kernel BTF");
        let object = BpfObject::for_kernel(&layout).map_err(BpfError::Object)?;
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
        loader.finish(links, switch, maps, Threads::by_task)
    }

    /// The same with the classic program, which takes neither kernel BTF nor Linux 6.9, and publishes the byte alone.
    ///
    /// # Errors
    /// As of [`load`](Self::load).
    pub fn load_classic(vcpus: usize, pages: usize) -> Result<Self, BpfError> {
        let mut stages = Stages::begin();
        let [on_switch, on_fpu, on_timer] = tracepoints()?;
        stages.end("tracefs");
        let object = BpfObject::classic().map_err(BpfError::Object)?;
        stages.end("object");
        let mut loader = Loader::new(object, stages)?;
        let maps = loader.make_maps((VCPU_OF_THREAD, vcpus), vcpus, pages)?;

        let switch = loader.program(CLASSIC_SWITCH, Hook::Record)?;
        loader.stages.end("switch program");
        let heal = loader.program(CLASSIC_HEAL, Hook::Record)?;
        let who = loader.program(CLASSIC_WHO, Hook::Raw)?;
        loader.stages.end("heal programs");

        let attach = |program: &OwnedFd, tracepoint, what| {
            run_at_tracepoint(program.as_fd(), tracepoint).map_err(BpfError::from_kernel(what))
        };
        let links = vec![
            attach(&switch, on_switch, "attach a BPF program to sched/sched_switch")?,
            attach(&heal, on_fpu, "attach a BPF program to x86_fpu/x86_fpu_regs_activated")?,
            attach(&heal, on_timer, "attach a BPF program to timer/hrtimer_expire_entry")?,
        ];
        loader.stages.end("attach");
        loader.finish(links, switch, maps, |map| Threads::by_id(map, who))
    }

    /// Which publisher it is the program of.
    pub fn kind(&self) -> PublisherKind {
        if self.is_classic() { PublisherKind::BpfClassic } else { PublisherKind::Bpf }
    }

    /// Whether this is the classic program: it leaves version and steal to the vCPU's thread.
    pub fn is_classic(&self) -> bool {
        self.threads.are_by_id()
    }

    /// Makes the calling thread the thread of `vcpu`, until the guard is dropped: its switches are counted in
    /// [`slot`](Self::slot), and published where the slot says.
    ///
    /// # Errors
    /// [`BpfError::NoSuchVcpu`] beyond the vCPUs that the program was loaded for, and [`BpfError::Kernel`] if the thread is
    /// enrolled already.
    pub fn enrol_current_thread(&self, vcpu: VcpuId) -> Result<Enrolled<'_>, BpfError> {
        let vcpus = self.slots.len();
        let slot = self.slots.get(vcpu.index()).ok_or(BpfError::NoSuchVcpu { vcpu, vcpus })?;

        slot.begin_running();
        let thread = self.threads.add_this_thread(vcpu)?;
        Ok(Enrolled { program: self, slot, thread, _not_send: PhantomData })
    }

    /// The slot of a vCPU, in memory shared with the program.
    ///
    /// # Panics
    /// Beyond the vCPUs that the program was loaded for.
    pub fn slot(&self, vcpu: VcpuId) -> &Slot {
        &self.slots[vcpu.index()]
    }

    /// The memory for guest pages that hold records.
    pub fn pages(&self) -> &RecordPages {
        &self.pages
    }

    /// Whether it is told of INIT. It is not where KVM's tracepoints are missing.
    pub fn notices_init(&self) -> bool {
        self.init_links.is_some()
    }

    /// How long the program on `sched_switch` has run, while [`RunStats`] were kept.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn switch_time(&self) -> Result<RunTime, BpfError> {
        RunTime::of(self.switch.as_fd())
    }

    /// How long each stage of loading took.
    pub fn timings(&self) -> &[(&'static str, Duration)] {
        &self.timings
    }
}

/// A vCPU's thread, known to the program. Dropping this makes it a stranger again.
///
/// It cannot leave its thread, and only it says where the vCPU's record is. The program runs inside the switches of
/// that same thread, so that it sees each of these calls as a whole; called from another thread, they could fall
/// into the middle of a publication.
#[derive(Debug)]
pub struct Enrolled<'program> {
    program: &'program Program,
    slot: &'program Slot,
    thread: ThreadKey,
    _not_send: PhantomData<*const ()>,
}

impl Enrolled<'_> {
    /// Takes this thread's run delay up to `run_delay_ns` (`/proc/thread-self/schedstat`, second field), and all time
    /// parked, for published. Returns the nanoseconds of it that were not, for the caller to publish or to forget.
    ///
    /// For before [`publish`](Self::publish): then the program goes on from there.
    pub fn account(&self, run_delay_ns: u64) -> u64 {
        self.slot.account(run_delay_ns)
    }

    /// Publishes into the record at `site` from now on; steal grows from what it is there.
    pub fn publish(&self, site: Site) {
        self.slot.publish(site);
    }

    /// Publishes nowhere from now on: the record stays as it is.
    pub fn withdraw(&self) {
        self.slot.withdraw();
    }

    /// Sets the byte, and keeps it set whatever the thread does, until [`unpark`](Self::unpark): it may sleep and wake
    /// and run, but its vCPU does not.
    ///
    /// Time parked comes into `steal` by [`Slot::add_parked`].
    pub fn park(&self) {
        // In this order: a timer interrupt in between would take the byte for a lost switch-in
        self.slot.keep_byte();
        if let Some(byte) = self.byte() {
            byte.store(PREEMPTED, Ordering::Release);
        }
    }

    /// Clears the byte, and gives it back to the program.
    pub fn unpark(&self) {
        // In this order: a switch in between would leave the byte set
        self.slot.release_byte();
        self.clear_byte();
    }

    /// Clears the byte if it is set, and says whether it was: for right before the vCPU enters the guest, in case the
    /// host has lost the trace of a switch-in.
    pub fn clear_byte(&self) -> bool {
        // Read first: the line stays shared with the vCPUs that watch it
        let set = self.byte().filter(|byte| byte.load(Ordering::Relaxed) != 0);
        if let Some(byte) = set {
            byte.store(0, Ordering::Release);
        }
        set.is_some()
    }

    /// The counts, in which this thread's own last switch-in is contained, seen or not.
    pub fn counts(&self) -> Counts {
        self.slot.count_this_arrival();
        self.slot.counts()
    }

    /// The vCPU's slot.
    pub fn slot(&self) -> &Slot {
        self.slot
    }

    fn byte(&self) -> Option<&AtomicU8> {
        self.program.pages.preempted(self.slot.site()?)
    }
}

impl Drop for Enrolled<'_> {
    fn drop(&mut self) {
        self.program.threads.remove(&self.thread);
    }
}
