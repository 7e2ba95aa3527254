//! The error of the monitor: what was tried, on what, why it failed, and the cure.

use std::borrow::Cow;
use std::error::Error;
use std::ops::Range;

use protocol::VcpuId;
use steal_time::StealTimeError;

/// A guest cannot be started, run or restored.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// The options describe a guest that cannot exist on this host. The text names the option.
    #[error("{0}")]
    Usage(String),
    /// The payload, the initrd or the command line is invalid, or does not fit the guest.
    #[error("{0}")]
    Load(String),
    /// This process cannot use `/dev/kvm`.
    #[error("Cannot open /dev/kvm: {0}")]
    Kvm(&'static str),
    /// A guest physical address range lies outside guest memory.
    #[error("Guest memory does not hold {range:#x?} (try a larger --memory)")]
    OutsideMemory {
        /// The guest physical addresses.
        range: Range<u64>,
    },
    /// The publisher cannot start on this host, or saved steal time does not fit this guest.
    #[error("Cannot publish steal time{}", try_publisher(.0))]
    Publisher(#[from] StealTimeError),
    /// The publisher failed for one vCPU.
    #[error("Cannot publish steal time of vCPU {vcpu}{}", try_publisher(source))]
    Publish {
        /// The vCPU.
        vcpu: VcpuId,
        /// The publisher's error.
        source: StealTimeError,
    },
    /// The vCPU has ended, so its state cannot be saved or restored.
    #[error("vCPU {0} has ended, and its state with it")]
    VcpuEnded(VcpuId),
    /// KVM or the host refused a request.
    #[error("Cannot {action}")]
    Host {
        /// What was tried, and the cure where there is one.
        action: Cow<'static, str>,
        /// The error of KVM or of the host.
        source: Box<dyn Error + Send + Sync>,
    },
}

impl VmmError {
    /// Returns a function that makes a refusal into [`VmmError::Host`], for `map_err`.
    ///
    /// `action` completes the sentence "Cannot ...".
    pub fn cannot<E>(action: impl Into<Cow<'static, str>>) -> impl FnOnce(E) -> Self
    where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        move |source| Self::Host { action: action.into(), source: source.into() }
    }

    /// Returns the same for a request that concerns `vcpu`: "Cannot `action` vCPU 0".
    pub(crate) fn cannot_vcpu<E>(action: &'static str, vcpu: VcpuId) -> impl FnOnce(E) -> Self
    where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        move |source| Self::cannot(format!("{action} vCPU {vcpu}"))(source)
    }

    /// Returns a function that names the vCPU whose publication failed, for `map_err`.
    pub(crate) fn publishing(vcpu: VcpuId) -> impl FnOnce(StealTimeError) -> Self {
        move |source| Self::Publish { vcpu, source }
    }

    /// Returns whether the options are at fault, rather than the host or the payload.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Usage(_))
    }

    /// Returns whether this host refuses the chosen publisher.
    pub fn is_of_the_publisher(&self) -> bool {
        matches!(self, Self::Publisher(_) | Self::Publish { .. })
    }
}

/// Returns the option that avoids `error`, in parentheses; empty if there is none.
fn try_publisher(error: &StealTimeError) -> String {
    error.alternative().map_or_else(String::new, |choice| format!(" (try --publisher {choice})"))
}
