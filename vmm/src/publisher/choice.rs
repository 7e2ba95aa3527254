//! Choosing a publisher: what was asked for, what the host allows, and what is used in the end.

use std::fmt;
use std::sync::Arc;

use super::bpf::{BpfError, Program};
use super::{BpfPublisher, Bystander, Publisher, PublisherError, PublisherKind};
use crate::memory::Ram;
use crate::vcpu::gate::Gate;

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

/// The slow half of a choice: whether the BPF program could be loaded. Made beside the VM, not before it.
#[derive(Debug)]
pub struct Loaded {
    choice: Choice,
    program: Option<Result<Program, BpfError>>,
}

impl Choice {
    /// Loads what this choice may need, for `vcpus` vCPUs.
    pub fn load(self, vcpus: usize) -> Loaded {
        let wants_bpf = matches!(self, Self::Auto | Self::Only(PublisherKind::Bpf));
        // A page element for each vCPU: however the guest spreads its records, no more pages than that hold one.
        Loaded { choice: self, program: wants_bpf.then(|| Program::load(vcpus, vcpus)) }
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
