//! A bare-metal guest whose locks ask the host whether the vCPU that they wait for is running.
//!
//! The crate exists to show what steal time, and its `preempted` byte, are good for, and what they
//! cost. It boots without an operating system in microseconds, so that everything it does is known.
//! It is split in two:
//!
//! - This **library** is independent of the machine. The same sources run in the guest and in host
//!   tests, the model checkers loom and shuttle included.
//! - The **binary** adds the machine: entry, tables, calls to CPL 0, and the jobs.
//!
//! Reading order of the core:
//!
//! 1. [`check`]: is that vCPU running? Four instructions, and no register but `rax`.
//! 2. [`steal_time`]: the records that the check reads, and how a guest reads steal.
//! 3. [`cpu`]: what a lock needs from the machine.
//! 4. [`spin_wait`]: when a spinning waiter stops; one [`spin_wait::WaitPolicy`] for each way to
//!    wait.
//! 5. [`park`]: how a waiter halts, and how it is woken.
//! 6. [`locks`]: a test-and-set lock, a ticket lock and a mutex on top of these. [`sync`] has the
//!    atomics.
//! 7. [`work`]: CPU time spent under a lock and between two acquisitions.
//!
//! [`lab`] holds the rest: fourteen more locks, the other forms of the check, and their tests.
//!
//! # Example: an uncontended lock
//!
//! (Not run as a doctest: the check needs an executable below 2 GiB, see `build.rs`.)
//!
//! ```no_run,standalone_crate
//! use guest_payload::cpu::Cpu;
//! use guest_payload::locks::{Lock, Tas};
//! use guest_payload::park::{LockCtx, ParkingLot};
//! use guest_payload::spin_wait::WaitPolicy;
//! use guest_payload::sync::AtomicU32;
//! use protocol::VcpuId;
//!
//! /// A machine of one CPU, on which nothing happens.
//! struct Uniprocessor;
//!
//! impl Cpu for Uniprocessor {
//!     fn id(&self) -> VcpuId { VcpuId::BOOT }
//!     fn is_preempted(&self, _vcpu: VcpuId) -> bool { false }
//!     fn halt_while(&self, _word: &AtomicU32, _value: u32) {}
//!     fn kick(&self, _vcpu: VcpuId) {}
//!     fn cycles(&self) -> u64 { 0 }
//!     fn stolen(&self) -> u64 { 0 }
//!     fn longest_step(&self) -> u64 { 1 }
//!     fn relax(&self) {}
//! }
//!
//! static LOT: ParkingLot = ParkingLot::new();
//! static LOCK: Tas = Tas::new();
//! let policy = WaitPolicy::Preempted { every: 1, twice: false, backstop: 100_000 };
//! let mut ctx = LockCtx::new(Uniprocessor, policy, &LOT);
//! LOCK.acquire(&mut ctx);
//! LOCK.release(&mut ctx);
//! assert_eq!(ctx.stats.halts, 0);
//! ```

#![cfg_attr(not(any(test, modelled)), no_std)]

pub mod check;
pub mod cpu;
pub mod lab;
pub mod locks;
pub mod park;
pub mod spin_wait;
pub mod steal_time;
pub mod sync;
pub mod work;
