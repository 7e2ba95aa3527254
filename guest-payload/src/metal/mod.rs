//! The metal: what a processor needs before it runs Rust, and what Rust then needs of the processor.
//!
//! - [`entry`]: three ways in, one path to CPL 3.
//! - [`traps`]: what CPL 0 does afterwards: calls, kicks, exceptions. Assembly, and as little of it as can be.
//! - [`tables`]: what the processor reads, made at compile time.
//! - [`calls`]: the way from CPL 3 to CPL 0 and back.
//! - [`lapic`], [`ports`]: devices, from CPL 3.
//! - [`start_info`], [`clock`], [`smp`]: what a guest finds out about its machine, and how it starts the rest of it.
//! - [`crash`]: how it ends when it should not.
//! - [`tell`]: what the host is told, where it has asked.
//! - [`vcpu`]: all of that as the CPU that locks know.
//!
//! No Rust runs at CPL 0. Some KVM backends emulate it, an instruction at a time and without SSE, which compiled code
//! for this target may use anywhere.

pub(crate) mod calls;
pub(crate) mod clock;
pub(crate) mod crash;
pub(crate) mod entry;
pub(crate) mod lapic;
mod memory;
pub(crate) mod ports;
pub(crate) mod smp;
pub(crate) mod start_info;
pub(crate) mod tables;
pub(crate) mod tell;
mod traps;
pub(crate) mod vcpu;
