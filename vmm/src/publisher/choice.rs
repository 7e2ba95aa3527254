//! Choosing a publisher: what was asked for, what the host allows, and what is used in the end.

use std::fmt;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use super::bpf::{BpfError, Program};
use super::{BpfPublisher, Bystander, Publisher, PublisherError, PublisherKind};
use crate::gate::Gate;
use crate::memory::Ram;

/// What the user asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The best that the host allows.
    #[default]
    Auto,
    /// This one, or none.
    Only(PublisherKind),
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.pad("auto"),
            Self::Only(kind) => kind.fmt(f),
        }
    }
}

/// The slow half of a choice, under way beside the making of the VM.
#[derive(Debug)]
pub enum Loading {
    /// On a thread of its own.
    Thread(JoinHandle<Loaded>),
    /// There was nothing to load, or no thread to be had.
    Done(Loaded),
}

/// The slow half of a choice: whether the BPF program could be loaded.
#[derive(Debug)]
pub struct Loaded {
    choice: Choice,
    program: Option<Result<Program, BpfError>>,
    at: Instant,
}

impl Choice {
    /// Begins to load what this choice may need, for `vcpus` vCPUs.
    pub fn begin_loading(self, vcpus: usize) -> Loading {
        let load = move || {
            // A page element for each vCPU: however the guest spreads its records, no more pages than that hold one.
            let program = self.wants_bpf().then(|| Program::load(vcpus, vcpus));
            Loaded { choice: self, program, at: Instant::now() }
        };
        let thread = self.wants_bpf().then(|| thread::Builder::new().spawn(load));
        match thread {
            Some(Ok(thread)) => Loading::Thread(thread),
            Some(Err(_)) | None => Loading::Done(load()),
        }
    }

    fn wants_bpf(self) -> bool {
        matches!(self, Self::Auto | Self::Only(PublisherKind::Bpf))
    }
}

impl Loading {
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

    /// Makes the choice; `kernel_can` says whether KVM has steal time of its own.
    ///
    /// # Errors
    /// [`PublisherError`] when what was asked for, by name, cannot be had.
    pub fn settle(self, kernel_can: bool) -> Result<Selection, PublisherError> {
        let plain = |kind, why: String| Selection { kind, program: None, why };
        Ok(match (self.choice, self.program) {
            (Choice::Auto, Some(Ok(program))) => Selection {
                kind: PublisherKind::Bpf,
                program: Some(Arc::new(program)),
                why: "the best there is, and this host allows it".to_owned(),
            },
            (Choice::Only(_), Some(Ok(program))) => Selection {
                kind: PublisherKind::Bpf,
                program: Some(Arc::new(program)),
                why: "asked for".to_owned(),
            },
            (Choice::Only(_), Some(Err(error))) => return Err(error.into()),
            (Choice::Auto, Some(Err(error))) if kernel_can => {
                plain(PublisherKind::Kernel, format!("{error}"))
            }
            (Choice::Auto, Some(Err(error))) => {
                plain(PublisherKind::Off, format!("{error}; and KVM offers no steal time of its own"))
            }
            (Choice::Only(PublisherKind::Kernel), None) if !kernel_can => {
                return Err(PublisherError::KernelLacksStealTime);
            }
            (Choice::Only(kind), None) => plain(kind, "asked for".to_owned()),
            (Choice::Auto, None) => plain(PublisherKind::Off, "nothing was tried".to_owned()),
        })
    }
}

impl Selection {
    /// Which publisher it is.
    pub fn kind(&self) -> PublisherKind {
        self.kind
    }

    /// Why this one.
    pub fn why(&self) -> &str {
        &self.why
    }

    /// The BPF program, if that is what publishes.
    pub fn program(&self) -> Option<&Program> {
        self.program.as_deref()
    }

    /// The publisher for a VM with this memory and these vCPU threads.
    pub fn publisher(&self, ram: Ram, gate: Arc<Gate>) -> Arc<dyn Publisher> {
        match &self.program {
            Some(program) => Arc::new(BpfPublisher::new(Arc::clone(program), ram, gate)),
            None => Arc::new(Bystander(self.kind)),
        }
    }
}
