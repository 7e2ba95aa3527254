//! The BPF publisher: the scheduler itself keeps the records true.
//!
//! A program on `sched_switch` (`resources/bpf/steal_time.bpf.c`) writes each vCPU's record from inside the context
//! switch, so that another vCPU sees the byte a fraction of a microsecond after the host has taken the CPU away.
//! This module loads it, tells it which thread is which vCPU, and shares memory with it:
//!
//! - a [`Slot`] per vCPU: where its record lies, and what the program has counted;
//! - [`RecordPages`], which stand in for the guest pages that hold records.
//!
//! From the object to the attached program it goes through bpf(2) directly, in 1.6 ms. A general loader parses the
//! whole BTF of the kernel, twice, and takes 24 to 40.
//!
//! | file | what it does |
//! |---|---|
//! | `kernel_btf.rs` | finds the kernel's offsets that the program needs |
//! | `btf_writer.rs`, `object.rs` | fit the committed object to them |
//! | `syscall.rs` | asks the kernel for maps and programs |
//! | `cost.rs` | says what the program takes of a switch |
//! | `mapping.rs`, `slot.rs`, `pages.rs` | the shared memory |
//!
//! Nothing is pinned: the kernel takes all of it back with the last descriptor, also after a `SIGKILL`.

mod btf_writer;
mod cost;
mod error;
mod kernel_btf;
mod mapping;
mod object;
mod pages;
mod slot;
mod syscall;
#[cfg(test)]
mod tests;

use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use protocol::VcpuId;
use protocol::steal_time::PREEMPTED;

pub use cost::{EmptyProgram, RunStats, RunTime};
pub use error::BpfError;
pub use kernel_btf::KernelBtfError;
use kernel_btf::KernelLayout;
use mapping::Mapping;
use object::{BpfObject, HEAL, INIT, IPI, PAGES, SLOTS, SWITCH, VCPU_OF_TASK};
pub use pages::RecordPages;
pub use slot::{Counts, Site, Slot};
use syscall::NewProgram;

/// The program, loaded and attached. Dropping it detaches.
#[derive(Debug)]
pub struct Program {
    _links: [OwnedFd; 3],
    init_links: Option<[OwnedFd; 2]>,
    switch: OwnedFd,
    vcpu_of_task: OwnedFd,
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
        let mut stages = Stages::begin();

        let layout = KernelLayout::of_running_kernel()?;
        stages.end("kernel BTF");

        let mut object = BpfObject::for_kernel(&layout).map_err(BpfError::Object)?;
        stages.end("object");

        let types = object.btf().map_err(BpfError::Object)?;
        let btf = syscall::load_btf(&types).map_err(BpfError::from_kernel("load the BPF program's types"))?;
        stages.end("types");

        let vcpu_of_task = create(&object, VCPU_OF_TASK, 0, btf.as_fd())?;
        let slot_map = create(&object, SLOTS, vcpus, btf.as_fd())?;
        let page_map = create(&object, PAGES, pages, btf.as_fd())?;
        object
            .relocate_maps(&[
                (VCPU_OF_TASK, vcpu_of_task.as_fd()),
                (SLOTS, slot_map.as_fd()),
                (PAGES, page_map.as_fd()),
            ])
            .map_err(BpfError::Object)?;
        let slots = Mapping::of_shared_file(slot_map.as_fd(), vcpus)
            .map_err(BpfError::from_kernel("map the vCPUs' slots"))?;
        let pages =
            RecordPages::map(page_map, pages).map_err(BpfError::from_kernel("map the record pages"))?;
        stages.end("maps");

        let [on_switch, on_fpu, on_timer] = layout.tracepoints;
        let switch = object.program(SWITCH, Some(on_switch), btf.as_fd()).map_err(BpfError::Object)?;
        let switch = load(&switch)?;
        stages.end("switch program");
        let heal_on_fpu = object.program(HEAL, Some(on_fpu), btf.as_fd()).map_err(BpfError::Object)?;
        let heal_on_fpu = load(&heal_on_fpu)?;
        let heal_on_timer = object.program(HEAL, Some(on_timer), btf.as_fd()).map_err(BpfError::Object)?;
        let heal_on_timer = load(&heal_on_timer)?;
        stages.end("heal programs");

        let links = [
            attach(switch.as_fd(), "attach a BPF program to sched_switch")?,
            attach(heal_on_fpu.as_fd(), "attach a BPF program to x86_fpu_regs_activated")?,
            attach(heal_on_timer.as_fd(), "attach a BPF program to hrtimer_expire_entry")?,
        ];
        stages.end("attach");

        let init_links = attach_to_init(&object, btf.as_fd())?;
        stages.end("INIT programs");

        Ok(Self { _links: links, init_links, switch, vcpu_of_task, slots, pages, timings: stages.ended })
    }

    /// Makes the calling thread the thread of `vcpu`, until the guard is dropped: its switches are counted in
    /// [`slot`](Self::slot), and published where the slot says.
    ///
    /// # Errors
    /// [`BpfError::NoSuchVcpu`] beyond the vCPUs that the program was loaded for, [`BpfError::NoThreadPidfd`] before
    /// Linux 6.9, and [`BpfError::Kernel`] if the thread is enrolled already.
    pub fn enrol_current_thread(&self, vcpu: VcpuId) -> Result<Enrolled<'_>, BpfError> {
        let vcpus = self.slots.len();
        let slot = self.slots.get(vcpu.index()).ok_or(BpfError::NoSuchVcpu { vcpu, vcpus })?;

        let thread = syscall::open_this_thread().map_err(|source| match source.raw_os_error() {
            Some(libc::EINVAL) => BpfError::NoThreadPidfd(source),
            _ => BpfError::Kernel { what: "name a vCPU's thread", source },
        })?;
        slot.begin_running();
        syscall::add_thread(self.vcpu_of_task.as_fd(), thread.as_fd(), vcpu)
            .map_err(BpfError::from_kernel("tell the BPF program a vCPU's thread"))?;
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
    thread: OwnedFd,
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
        // It fails only for a thread that is gone, and the kernel has forgotten that one already
        let _ = syscall::remove_thread(self.program.vcpu_of_task.as_fd(), self.thread.as_fd());
    }
}

fn create(
    object: &BpfObject,
    name: &str,
    entries: usize,
    types: BorrowedFd<'_>,
) -> Result<OwnedFd, BpfError> {
    let entries = u32::try_from(entries).unwrap_or(u32::MAX);
    let map = object.map(name, entries, types).map_err(BpfError::Object)?;
    syscall::create_map(&map).map_err(BpfError::from_kernel("create a BPF map"))
}

fn attach(program: BorrowedFd<'_>, what: &'static str) -> Result<OwnedFd, BpfError> {
    syscall::attach_to_tracepoint(program, None).map_err(BpfError::from_kernel(what))
}

/// Attaches the two programs that are told of INIT, or none where KVM lacks a tracepoint.
fn attach_to_init(object: &BpfObject, btf: BorrowedFd<'_>) -> Result<Option<[OwnedFd; 2]>, BpfError> {
    let mut links = Vec::with_capacity(2);
    for (name, tracepoint) in [(IPI, c"kvm_apic_ipi"), (INIT, c"kvm_apic_accept_irq")] {
        let program = load(&object.program(name, None, btf).map_err(BpfError::Object)?)?;
        match syscall::attach_to_tracepoint(program.as_fd(), Some(tracepoint)) {
            Ok(link) => links.push(link),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            Err(source) => {
                return Err(BpfError::from_kernel("attach a BPF program to KVM's local APICs")(source));
            }
        }
    }
    Ok(links.try_into().ok())
}

/// Loads a program, and asks the verifier why if it refuses: an explanation costs time, so only then.
fn load(program: &NewProgram<'_>) -> Result<OwnedFd, BpfError> {
    const LOG_BYTES: usize = 64 << 10;
    const LOG_LINES: usize = 12;

    syscall::load_program(program, &mut []).map_err(|source| {
        if source.raw_os_error() == Some(libc::EPERM) {
            return BpfError::NotPermitted { what: "load the BPF program", source };
        }
        let mut log = vec![0; LOG_BYTES];
        let _ = syscall::load_program(program, &mut log);
        let log = String::from_utf8_lossy(log.split(|byte| *byte == 0).next().unwrap_or_default());
        if log.is_empty() {
            return BpfError::Kernel { what: "load the BPF program", source };
        }
        let lines: Vec<_> = log.lines().collect();
        let last = &lines[lines.len().saturating_sub(LOG_LINES)..];
        BpfError::Verifier { program: program.name.into(), log: last.join("\n"), source }
    })
}

/// A stop-watch that names what it measured.
struct Stages {
    last: Instant,
    ended: Vec<(&'static str, Duration)>,
}

impl Stages {
    fn begin() -> Self {
        Self { last: Instant::now(), ended: Vec::with_capacity(8) }
    }

    fn end(&mut self, stage: &'static str) {
        let now = Instant::now();
        self.ended.push((stage, now - self.last));
        self.last = now;
    }
}
