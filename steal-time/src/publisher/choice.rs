//! Choosing a publisher: what was asked for, what the host allows, and what is used in the end.

use std::fmt;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use super::{
    BpfPublisher, MonitorPublisher, NullPublisher, PerfPublisher, Publisher, PublisherKind, StealTimeError,
};
use crate::bpf::{BpfError, Program};
use crate::host_vm::HostVm;
use host::cpus::Cpus;
use host::error_chain;
use host::perf::{PerfError, SwitchLog};
use host::thread::own_tid;

/// What the user asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PublisherChoice {
    /// The best that the host allows.
    #[default]
    Auto,
    /// This one, or none.
    Only(PublisherKind),
}

impl fmt::Display for PublisherChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.pad("auto"),
            Self::Only(kind) => kind.fmt(f),
        }
    }
}

/// The slow half of a choice, under way beside the making of the VM.
#[derive(Debug)]
pub enum PublisherLoading {
    /// On a thread of its own.
    Thread(JoinHandle<Loaded>),
    /// There was nothing to load, or no thread to be had.
    Done(Loaded),
}

/// The slow half of a choice: whether a BPF program could be loaded.
#[derive(Debug)]
pub struct Loaded {
    choice: PublisherChoice,
    program: Option<Program>,
    refused: Vec<Refusal>,
    at: Instant,
}

/// What the host refuses, and why.
type Refusal = (PublisherKind, BpfError);

impl PublisherChoice {
    /// Begins to load what this choice may need, for `vcpus` vCPUs.
    pub fn begin_loading(self, vcpus: usize) -> PublisherLoading {
        let load = move || self.load(vcpus);
        let thread = self.wants_bpf().then(|| thread::Builder::new().spawn(load));
        match thread {
            Some(Ok(thread)) => PublisherLoading::Thread(thread),
            Some(Err(_)) | None => PublisherLoading::Done(load()),
        }
    }

    fn load(self, vcpus: usize) -> Loaded {
        let (mut program, mut refused) = (None, Vec::new());
        // A page element for each vCPU: however the guest spreads its records, no more pages than that hold one.
        if matches!(self, Self::Auto | Self::Only(PublisherKind::Bpf)) {
            match Program::load(vcpus, vcpus) {
                Ok(loaded) => program = Some(loaded),
                Err(error) => refused.push((PublisherKind::Bpf, error)),
            }
        }
        let is_worth_it = match self {
            Self::Auto => refused.iter().any(|(_, error)| !matches!(error, BpfError::NotPermitted { .. })),
            Self::Only(kind) => kind == PublisherKind::BpfClassic,
        };
        if is_worth_it {
            match Program::load_classic(vcpus, vcpus) {
                Ok(loaded) => program = Some(loaded),
                Err(error) => refused.push((PublisherKind::BpfClassic, error)),
            }
        }
        Loaded { choice: self, program, refused, at: Instant::now() }
    }

    fn wants_bpf(self) -> bool {
        matches!(self, Self::Auto | Self::Only(PublisherKind::Bpf | PublisherKind::BpfClassic))
    }
}

impl PublisherLoading {
    /// Waits until it is over.
    pub fn finish(self) -> Loaded {
        match self {
            Self::Thread(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Self::Done(loaded) => loaded,
        }
    }
}

/// A choice that is made.
#[derive(Debug)]
pub struct Selection {
    kind: PublisherKind,
    program: Option<Arc<Program>>,
    why: String,
}

impl Loaded {
    /// When loading was over.
    pub fn at(&self) -> Instant {
        self.at
    }

    /// Makes the choice; `kernel_can` says whether KVM has steal time of its own. The automatic choice walks down: `bpf`,
    /// `bpf-classic`, `perf`, `park`. It never takes KVM's own publisher, whose byte may be anything.
    ///
    /// # Errors
    /// [`StealTimeError`] when what was asked for, by name, cannot be had.
    pub fn settle(self, kernel_can: bool) -> Result<Selection, StealTimeError> {
        let is_auto = self.choice == PublisherChoice::Auto;
        if let Some(program) = self.program {
            let why = match is_auto {
                true if self.refused.is_empty() => "the best there is, and this host allows it".to_owned(),
                true => why_not(&self.refused),
                false => ASKED_FOR.to_owned(),
            };
            return Ok(Selection { kind: program.kind(), program: Some(Arc::new(program)), why });
        }
        if is_auto {
            return Ok(Selection::without_bpf(&self.refused));
        }
        if let Some((_, error)) = self.refused.into_iter().next() {
            return Err(error.into());
        }
        let kind = match self.choice {
            PublisherChoice::Only(PublisherKind::Kernel) if !kernel_can => {
                return Err(StealTimeError::KernelLacksStealTime);
            }
            PublisherChoice::Only(kind) => kind,
            PublisherChoice::Auto => PublisherKind::Monitor,
        };
        if kind == PublisherKind::Perf {
            probe_perf()?;
        }
        Ok(Selection { kind, program: None, why: ASKED_FOR.to_owned() })
    }
}

const ASKED_FOR: &str = "asked for";

/// Whether perf may record a thread's switches here.
fn probe_perf() -> Result<(), PerfError> {
    SwitchLog::of_thread(own_tid(), 1).map(drop)
}

/// For the user: what was refused, and why.
fn why_not(refused: &[Refusal]) -> String {
    let each = refused.iter().map(|(kind, error)| format!("not {kind}: {}", error_chain::one_line(error)));
    each.collect::<Vec<_>>().join("; ")
}

impl Selection {
    fn without_bpf(refused: &[Refusal]) -> Self {
        let not_bpf = why_not(refused);
        match probe_perf() {
            Ok(()) => Self { kind: PublisherKind::Perf, program: None, why: not_bpf },
            Err(error) => {
                let why = format!("{not_bpf}; not perf: {}", error_chain::one_line(&error));
                Self { kind: PublisherKind::Monitor, program: None, why }
            }
        }
    }

    /// Which publisher it is.
    pub fn kind(&self) -> PublisherKind {
        self.kind
    }

    /// Why this one.
    pub fn why(&self) -> &str {
        &self.why
    }

    /// The BPF program, if that is what publishes.
    pub fn program(&self) -> Option<&Arc<Program>> {
        self.program.as_ref()
    }

    /// Makes the publisher for `vm`, whose vCPU threads use `cpus`.
    ///
    /// # Errors
    /// The host's refusal of what it needs.
    pub fn publisher(&self, vm: Arc<dyn HostVm>, cpus: &Cpus) -> Result<Arc<dyn Publisher>, StealTimeError> {
        Ok(match (&self.program, self.kind) {
            (Some(program), _) => Arc::new(BpfPublisher::new(Arc::clone(program), vm, cpus, 0)?),
            (None, PublisherKind::Perf) => Arc::new(PerfPublisher::new(vm, cpus)?),
            (None, PublisherKind::Monitor) => Arc::new(MonitorPublisher::new(vm)?),
            (None, kind) => Arc::new(NullPublisher(kind)),
        })
    }
}
