//! Loads an object: creates its maps, loads and attaches its programs.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use super::error::{BpfError, is_verdict};
use super::mapping::Mapping;
use super::object::{BpfObject, INIT, IPI, PAGES, SLOTS, STRANGER};
use super::pages::RecordPages;
use super::slot::Slot;
use super::syscall::{self, Hook, NewProgram};

/// An object during loading.
pub(super) struct Loader {
    object: BpfObject,
    types: OwnedFd,
    pub(super) stages: Stages,
}

/// The created maps. Programs that are loaded afterwards refer to them by their descriptors.
pub(super) struct Maps {
    pub(super) threads: OwnedFd,
    pub(super) slots: Mapping<Slot>,
    pub(super) pages: RecordPages,
    _slot_map: OwnedFd,
    _stranger_map: OwnedFd,
}

impl Loader {
    /// Loads the object's types.
    pub(super) fn new(mut object: BpfObject, mut stages: Stages) -> Result<Self, BpfError> {
        let types = object.btf().map_err(BpfError::relocation)?;
        let types =
            syscall::load_btf(&types).map_err(BpfError::from_kernel("load the BPF program's types"))?;
        stages.end("types");
        Ok(Self { object, types, stages })
    }

    /// Creates the maps: of threads, given by name and number of entries, of slots, of pages, and of
    /// strangers.
    pub(super) fn make_maps(
        &mut self,
        (threads_name, max_threads): (&str, usize),
        vcpus: usize,
        pages: usize,
    ) -> Result<Maps, BpfError> {
        let object = &mut self.object;
        let threads = create(object, threads_name, max_threads, self.types.as_fd())?;
        let slot_map = create(object, SLOTS, vcpus, self.types.as_fd())?;
        let page_map = create(object, PAGES, pages, self.types.as_fd())?;
        let stranger_map = create(object, STRANGER, 1, self.types.as_fd())?;
        let maps = [
            (threads_name, threads.as_fd()),
            (SLOTS, slot_map.as_fd()),
            (PAGES, page_map.as_fd()),
            (STRANGER, stranger_map.as_fd()),
        ];
        object.relocate_maps(&maps).map_err(BpfError::relocation)?;
        let slots = Mapping::of_shared_file(slot_map.as_fd(), vcpus)
            .map_err(BpfError::from_kernel("map the vCPUs' slots"))?;
        let pages =
            RecordPages::map(page_map, pages).map_err(BpfError::from_kernel("map the record pages"))?;
        self.stages.end("maps");
        Ok(Maps { threads, _slot_map: slot_map, _stranger_map: stranger_map, slots, pages })
    }

    /// Loads program `name` for `hook`.
    pub(super) fn program(&self, name: &str, hook: Hook) -> Result<OwnedFd, BpfError> {
        load(&self.object.program(name, hook, self.types.as_fd()).map_err(BpfError::relocation)?)
    }

    /// Attaches the two programs that detect INIT, or none if KVM lacks a tracepoint.
    pub(super) fn attach_to_init(&self) -> Result<Option<[OwnedFd; 2]>, BpfError> {
        let mut links = Vec::with_capacity(2);
        for (name, tracepoint) in [(IPI, c"kvm_apic_ipi"), (INIT, c"kvm_apic_accept_irq")] {
            let program = self.program(name, Hook::Raw)?;
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
}

/// Creates map `name` of the object, with `entries` entries.
pub(super) fn create(
    object: &BpfObject,
    name: &str,
    entries: usize,
    types: BorrowedFd<'_>,
) -> Result<OwnedFd, BpfError> {
    let entries = u32::try_from(entries).unwrap_or(u32::MAX);
    let map = object.map(name, entries, types).map_err(BpfError::relocation)?;
    syscall::create_map(&map).map_err(BpfError::from_kernel("create a BPF map"))
}

/// Attaches a program to the tracepoint that it was loaded for. `what` is for the error message.
pub(super) fn attach(program: BorrowedFd<'_>, what: &'static str) -> Result<OwnedFd, BpfError> {
    syscall::attach_to_tracepoint(program, None).map_err(BpfError::from_kernel(what))
}

/// Loads a program. If the verifier rejects it, loads it again with a log: the log costs time, so
/// only then.
pub(super) fn load(program: &NewProgram<'_>) -> Result<OwnedFd, BpfError> {
    const LOG_BYTES: usize = 64 << 10;

    let refused = |source, log: &[u8]| {
        let log = String::from_utf8_lossy(log.split(|byte| *byte == 0).next().unwrap_or_default());
        BpfError::from_load(program.name, source, &log)
    };
    match load_uninterrupted(program, &mut []) {
        Err(source) if is_verdict(&source) => {
            let mut log = vec![0; LOG_BYTES];
            load_uninterrupted(program, &mut log).map_err(|again| {
                // The second verdict may be that the log is too long
                if is_verdict(&again) { refused(source, &log) } else { refused(again, &[]) }
            })
        }
        loaded => loaded.map_err(|source| refused(source, &[])),
    }
}

/// Loads a program. The verifier returns `EAGAIN` when a signal is pending.
fn load_uninterrupted(program: &NewProgram<'_>, log: &mut [u8]) -> io::Result<OwnedFd> {
    const ATTEMPTS: usize = 5;

    let is_interrupted = |loaded: &io::Result<OwnedFd>| {
        loaded.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    };
    let mut loaded = syscall::load_program(program, log);
    for _ in 1..ATTEMPTS {
        if !is_interrupted(&loaded) {
            break;
        }
        loaded = syscall::load_program(program, log);
    }
    loaded
}

/// A stopwatch with named laps.
pub(super) struct Stages {
    last: Instant,
    pub(super) ended: Vec<(&'static str, Duration)>,
}

impl Stages {
    /// Starts the first stage.
    pub(super) fn begin() -> Self {
        Self { last: Instant::now(), ended: Vec::with_capacity(8) }
    }

    /// Ends the current stage, names it, and starts the next.
    pub(super) fn end(&mut self, stage: &'static str) {
        let now = Instant::now();
        self.ended.push((stage, now - self.last));
        self.last = now;
    }
}
