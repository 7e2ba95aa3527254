//! Jobs of the lab: the other locks and checks, conformance, and loads for judges outside the
//! guest.

pub(crate) mod checks;
pub(crate) mod conformance;
pub(crate) mod idle;
pub(crate) mod locks;
pub(crate) mod mixed;
pub(crate) mod watch;

/// Continues with a vCPU that another vCPU has reset and started again.
pub(crate) fn continue_after_restart() -> ! {
    conformance::init::after_restart()
}
