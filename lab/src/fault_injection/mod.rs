//! Fault injection: makes a publisher wrong in known ways.
//!
//! An oracle that finds no wrong byte proves little until it finds one that is known to be wrong.
//! So the real publisher writes shadow records, which the guest does not see, and a thread copies
//! them to the guest's records with the requested [`Faults`]. It counts each fault. The oracle must
//! find them, and benches show what a wrong byte costs a lock that trusts it.
//!
//! The copy is up to [`PERIOD`] late if the copying thread has a CPU, and may miss shorter
//! preemptions. KVM's own publisher writes the guest's record itself, so it leaves no place for a
//! copy.

mod copier;
mod faults;
mod injector;
mod plan;
mod shadow;

use std::io;
use std::sync::Arc;

pub use copier::PERIOD;
pub use faults::Faults;
use host::cpus::Cpus;
pub use injector::FaultInjector;
pub use plan::FaultCounts;
use shadow::ShadowVm;
use steal_time::StealTimeError;
use steal_time::host_vm::HostVm;
use steal_time::publisher::{BpfPublisher, MsrOwner, Publisher, PublisherKind, Selection};
use vmm::VmmError;
use vmm::memory::Ram;

/// Memory for the shadow records (MiB); 255 of them need 16 KiB.
const SHADOW_MIB: u64 = 1;

/// Faults cannot be injected.
#[derive(Debug, thiserror::Error)]
pub enum FaultInjectionError {
    /// The text does not name a fault.
    #[error(
        "{0:?} is not a fault (write drop=SHARE, false_hz=RATE, delay_us=TIME, stick, lose_every=N, seed=N, separated by commas)"
    )]
    Syntax(String),
    /// The publisher writes guest memory itself.
    #[error(
        "Cannot inject faults into publisher {0}: no code of this monitor stands between it and the guest (try --publisher bpf)"
    )]
    NotInjectable(PublisherKind),
    /// Only a BPF program can lose switches.
    #[error("Cannot lose switches of publisher {0}: only a BPF program sees each of them (try drop=SHARE)")]
    CannotLose(PublisherKind),
    /// The host cannot create the copying thread.
    #[error("Cannot start the thread that injects faults")]
    Thread(#[source] io::Error),
    /// The host has no memory for the shadow records.
    #[error("Cannot allocate memory for the shadow records of fault injection")]
    Shadow(#[source] VmmError),
}

impl From<FaultInjectionError> for StealTimeError {
    fn from(error: FaultInjectionError) -> Self {
        Self::Wrapper(error.into())
    }
}

/// A publisher with faults.
#[derive(Debug)]
pub struct Injected {
    /// The publisher that the guest's vCPUs attach to.
    pub publisher: Arc<dyn Publisher>,
    /// Counts the faults; `None` if the BPF program makes all of them.
    pub injector: Option<Arc<FaultInjector>>,
}

/// Creates the publisher of `selection`, with `faults`.
///
/// # Errors
/// [`FaultInjectionError`], or an error of the publisher itself.
pub fn inject(
    selection: &Selection,
    vm: Arc<dyn HostVm>,
    cpus: &Cpus,
    faults: Faults,
) -> Result<Injected, StealTimeError> {
    if !faults.needs_copier() {
        let publisher = with_losses(selection, vm, cpus, faults.lose_every)?;
        return Ok(Injected { publisher, injector: None });
    }
    if selection.kind().msr_owner() != MsrOwner::Monitor {
        return Err(FaultInjectionError::NotInjectable(selection.kind()).into());
    }
    let shadow = Ram::new(SHADOW_MIB).map_err(FaultInjectionError::Shadow)?;
    let shadow: Arc<dyn HostVm> = Arc::new(ShadowVm::new(shadow, Arc::clone(&vm)));
    let inner = with_losses(selection, Arc::clone(&shadow), cpus, faults.lose_every)?;
    let injector = Arc::new(FaultInjector::new(inner, shadow, vm, cpus, faults)?);
    Ok(Injected { publisher: Arc::clone(&injector) as Arc<dyn Publisher>, injector: Some(injector) })
}

/// Creates the publisher of `selection`. Its BPF program ignores every `lose_every`th switch-in; 0
/// for none.
fn with_losses(
    selection: &Selection,
    vm: Arc<dyn HostVm>,
    cpus: &Cpus,
    lose_every: u64,
) -> Result<Arc<dyn Publisher>, StealTimeError> {
    match selection.program() {
        Some(program) => Ok(Arc::new(BpfPublisher::new(Arc::clone(program), vm, cpus, lose_every)?)),
        None if lose_every > 0 => Err(FaultInjectionError::CannotLose(selection.kind()).into()),
        None => selection.publisher(vm, cpus),
    }
}
