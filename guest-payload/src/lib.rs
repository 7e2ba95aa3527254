//! The bare-metal end: a guest whose locks ask whether the vCPU they wait for is running at all.
//!
//! This library is the part that is not bound to the metal; the same sources run in the payload and in tests on the
//! host. Reading order:
//!
//! 1. [`check`]: is that vCPU running? Four instructions, one register; and the shapes that it might have had.
//!    [`differential`] holds them to what they promise, [`owner_spin`] shows what each does to its caller.
//! 2. [`steal_time`]: the records that the check reads, and how a guest reads steal.
//! 3. [`cpu`]: what a lock needs of the machine.
//! 4. [`patience`]: when a spinning waiter stops. The ways to wait.
//! 5. [`park`]: how a waiter halts, and who wakes it.
//! 6. [`locks`]: those that kernels use, and ours. [`sync`] has their atomics.
//! 7. [`work`]: time in a section and between two, as CPU time.
//! 8. [`witness`]: how a vCPU finds out by itself whether another's byte is true.
//!
//! The binary of this package adds the metal: entry, tables, calls to CPL 0, the jobs.

#![cfg_attr(not(any(test, modelled)), no_std)]

pub mod check;
pub mod cpu;
pub mod differential;
pub mod locks;
pub mod owner_spin;
pub mod park;
pub mod patience;
pub mod steal_time;
pub mod sync;
pub mod witness;
pub mod work;
