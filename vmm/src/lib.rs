//! A small KVM monitor. It boots one guest on x86-64, and gives it correct steal time.
//!
//! The guest is a PVH or 64-bit ELF kernel, a bzImage, or a flat binary. It has up to 255 vCPUs,
//! COM1, a reset line and an exit port. The `steal-time` crate publishes its steal-time records.
//! The monitor measures nothing and schedules nothing: a program that does implements
//! [`hooks::RunHooks`].
//!
//! ```no_run
//! use std::sync::Arc;
//! use std::time::Instant;
//!
//! use clap::Parser;
//! use host::stdio::{self, Stdout};
//! use protocol::VcpuId;
//! use vmm::cli::Cli;
//! use vmm::guest::Guest;
//! use vmm::hooks::RunHooks;
//! use vmm::timings::Timings;
//!
//! /// Prints what the guest writes to port 0x80, the POST code of a PC.
//! #[derive(Debug)]
//! struct PostCodes;
//!
//! impl RunHooks for PostCodes {
//!     fn on_exit(&self, vcpu: VcpuId, port: u16, data: &[u8]) -> bool {
//!         if port == 0x80 {
//!             stdio::eprintln(format_args!("vCPU {vcpu}: POST code {data:02x?}"));
//!         }
//!         port == 0x80
//!     }
//! }
//!
//! let options = Cli::parse_from(["monitor", "--vcpus", "2", "--payload", "vmlinux"]);
//! let config = options.guest.config(&[])?;
//! let timings = Timings::since(Instant::now());
//! let guest = Guest::start(&config, Arc::new(PostCodes), Stdout::default(), timings)?;
//! let run = guest.wait()?;
//! stdio::print(format_args!("{run}\n"))?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Where to read on:
//!
//! - [`guest`]: a guest from its configuration to its outcome.
//! - [`vm`] and [`vcpu`]: KVM's objects, the run loop, and how vCPU threads are stopped.
//! - [`loader`] and [`boot`]: payload formats, and the state in which vCPUs start.
//! - [`event_loop`], [`blocked_signals`] and [`supervise`]: what the main thread waits for, and how
//!   a run ends. [`console`]: what the guest reads and prints.

pub mod blocked_signals;
pub mod boot;
pub mod cli;
pub mod console;
pub mod cpuid;
pub mod error;
pub mod escape;
pub mod event_loop;
pub mod guest;
pub mod guest_clock;
pub mod hooks;
pub mod loader;
pub mod memory;
pub mod supervise;
pub mod timings;
pub mod vcpu;
pub mod vm;

pub use error::VmmError;
