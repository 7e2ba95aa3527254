//! The machine: what a processor needs before it runs Rust, and what Rust needs from the processor.
//!
//! - [`entry`]: three ways in, one path to CPL 3.
//! - [`traps`]: what CPL 0 does afterwards: calls, kicks, exceptions. Assembly only.
//! - [`tables`]: the tables that the processor reads, built at compile time.
//! - [`calls`]: from CPL 3 to CPL 0 and back.
//! - [`lapic`], [`ports`]: devices, from CPL 3.
//! - [`start_info`], [`clock`], [`smp`]: how the guest learns about its machine and starts other
//!   vCPUs.
//! - [`crash`]: how a run ends after an exception or a panic.
//! - [`hints`]: hints to the host's scheduler, and from it.
//! - [`vcpu`]: the CPU that the locks see.
//!
//! No Rust runs at CPL 0. Some KVM backends emulate CPL 0 one instruction at a time and without
//! SSE, which compiled code may use anywhere.

pub(crate) mod calls;
pub(crate) mod clock;
pub(crate) mod crash;
pub(crate) mod entry;
pub(crate) mod hints;
pub(crate) mod lapic;
mod memory;
pub(crate) mod ports;
pub(crate) mod smp;
pub(crate) mod start_info;
pub(crate) mod tables;
mod traps;
pub(crate) mod vcpu;
