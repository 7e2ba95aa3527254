//! The choice of a publisher: what the user chooses, what the host allows, and what is used.
//!
//! Loading a BPF program is slow (1.6 ms) and needs no VM, so a monitor may load while it builds
//! its VM: [`PublisherChoice::begin_loading`], [`PublisherLoading::finish`], [`Loaded::settle`],
//! [`Selection::publisher`].

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use super::kind::{PublisherChoice, PublisherKind};
use super::{BpfPublisher, MonitorPublisher, NullPublisher, PerfPublisher, Publisher};
use crate::bpf::{BpfError, Program};
use crate::error::StealTimeError;
use crate::host_vm::HostVm;
use host::cpus::Cpus;
use host::error_chain;
use host::perf::{PerfError, SwitchLog};
use host::thread::own_tid;

/// Loading of a BPF program in progress.
#[derive(Debug)]
pub enum PublisherLoading {
    /// A thread loads it.
    Thread(JoinHandle<Loaded>),
    /// Nothing was to load, or no thread could be started.
    Done(Loaded),
}

/// The result of loading: a program, or the reasons why there is none.
#[derive(Debug)]
pub struct Loaded {
    choice: PublisherChoice,
    program: Option<Program>,
    refused: Vec<Refusal>,
    at: Instant,
}

/// A publisher that the host refuses, and the reason.
pub type Refusal = (PublisherKind, BpfError);

impl PublisherChoice {
    /// Starts to load what this choice may need, for up to `vcpus` vCPUs.
    pub fn begin_loading(self, vcpus: usize) -> PublisherLoading {
        let load = move || self.load(vcpus);
        let thread = self.wants_bpf().then(|| thread::Builder::new().spawn(load));
        match thread {
            Some(Ok(thread)) => PublisherLoading::Thread(thread),
            Some(Err(_)) | None => PublisherLoading::Done(load()),
        }
    }

    /// Loads what this choice may need, for up to `vcpus` vCPUs.
    pub(crate) fn load(self, vcpus: usize) -> Loaded {
        let (mut program, mut refused) = (None, Vec::new());
        // One page per vCPU suffices: a vCPU has one record, which lies on one page
        if matches!(self, Self::Auto | Self::Only(PublisherKind::Bpf)) {
            match Program::load(vcpus, vcpus) {
                Ok(loaded) => program = Some(loaded),
                Err(error) => refused.push((PublisherKind::Bpf, error)),
            }
        }
        // Without permission the classic program would be refused too
        let tries_classic = match self {
            Self::Auto => refused.iter().any(|(_, error)| !matches!(error, BpfError::NotPermitted { .. })),
            Self::Only(kind) => kind == PublisherKind::BpfClassic,
        };
        if tries_classic {
            match Program::load_classic(vcpus, vcpus) {
                Ok(loaded) => program = Some(loaded),
                Err(error) => refused.push((PublisherKind::BpfClassic, error)),
            }
        }
        Loaded { choice: self, program, refused, at: Instant::now() }
    }

    /// Settles on a publisher at once: loads what this choice may need, for up to `vcpus` vCPUs, and
    /// returns what this choice and the host settle on. `kernel_can` is whether KVM has steal time
    /// of its own.
    ///
    /// # Errors
    /// [`StealTimeError`] if the host refuses a publisher that is chosen by name.
    pub fn settle(self, vcpus: usize, kernel_can: bool) -> Result<Selection, StealTimeError> {
        self.load(vcpus).settle(kernel_can)
    }

    fn wants_bpf(self) -> bool {
        matches!(self, Self::Auto | Self::Only(PublisherKind::Bpf | PublisherKind::BpfClassic))
    }
}

impl PublisherLoading {
    /// Waits for the result.
    pub fn finish(self) -> Loaded {
        match self {
            Self::Thread(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Self::Done(loaded) => loaded,
        }
    }
}

/// The publisher that a choice and the host settled on.
#[derive(Debug)]
pub struct Selection {
    kind: PublisherKind,
    program: Option<Arc<Program>>,
    why: String,
    refused: Vec<Refusal>,
}

impl Loaded {
    /// Returns when loading ended.
    pub fn at(&self) -> Instant {
        self.at
    }

    /// Settles on a publisher. `kernel_can` is whether KVM has steal time of its own.
    ///
    /// [`PublisherChoice::Auto`] takes the first of `bpf`, `bpf-classic`, `perf` and `monitor` that
    /// the host allows. It never takes `kernel`: some KVM backends never set `preempted`.
    ///
    /// # Errors
    /// [`StealTimeError`] if the host refuses a publisher that is chosen by name.
    pub fn settle(self, kernel_can: bool) -> Result<Selection, StealTimeError> {
        let is_auto = self.choice == PublisherChoice::Auto;
        if let Some(program) = self.program {
            let why = match is_auto {
                true if self.refused.is_empty() => "the most accurate, and this host allows it".to_owned(),
                true => why_not(&self.refused),
                false => REQUESTED.to_owned(),
            };
            let (kind, program) = (program.kind(), Some(Arc::new(program)));
            return Ok(Selection { kind, program, why, refused: self.refused });
        }
        if is_auto {
            return Ok(Selection::without_bpf(self.refused));
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
        Ok(Selection { kind, program: None, why: REQUESTED.to_owned(), refused: Vec::new() })
    }
}

/// The reason for a publisher that is chosen by name.
const REQUESTED: &str = "requested";

/// Checks that perf may record a thread's switches here.
fn probe_perf() -> Result<(), PerfError> {
    SwitchLog::of_thread(own_tid(), 1).map(drop)
}

/// Returns what was refused, and the reasons, for the user.
fn why_not(refused: &[Refusal]) -> String {
    let each = refused.iter().map(|(kind, error)| format!("not {kind}: {}", error_chain::one_line(error)));
    each.collect::<Vec<_>>().join("; ")
}

impl Selection {
    fn without_bpf(refused: Vec<Refusal>) -> Self {
        let not_bpf = why_not(&refused);
        let (kind, why) = match probe_perf() {
            Ok(()) => (PublisherKind::Perf, not_bpf),
            Err(error) => {
                (PublisherKind::Monitor, format!("{not_bpf}; not perf: {}", error_chain::one_line(&error)))
            }
        };
        Self { kind, program: None, why, refused }
    }

    /// Returns the kind of the publisher.
    pub fn kind(&self) -> PublisherKind {
        self.kind
    }

    /// Returns the reason for this publisher, for the user.
    pub fn why(&self) -> &str {
        &self.why
    }

    /// Returns the better publishers that the host refuses, and the reasons. Empty if the publisher
    /// was chosen by name.
    pub fn refused(&self) -> &[Refusal] {
        &self.refused
    }

    /// Returns the BPF program, if the publisher uses one.
    pub fn program(&self) -> Option<&Arc<Program>> {
        self.program.as_ref()
    }

    /// Creates the publisher for `vm`, whose vCPU threads use `cpus`.
    ///
    /// # Errors
    /// [`StealTimeError`] if the host refuses.
    pub fn publisher(&self, vm: Arc<dyn HostVm>, cpus: &Cpus) -> Result<Arc<dyn Publisher>, StealTimeError> {
        Ok(match (&self.program, self.kind) {
            (Some(program), _) => Arc::new(BpfPublisher::new(Arc::clone(program), vm, cpus, 0)?),
            (None, PublisherKind::Perf) => Arc::new(PerfPublisher::new(vm, cpus)?),
            (None, PublisherKind::Monitor) => Arc::new(MonitorPublisher::new(vm)?),
            (None, kind) => Arc::new(NullPublisher(kind)),
        })
    }
}
