//! Everything beyond the core: more forms of the check, more locks, and the tests that compare
//! them.
//!
//! - [`check_forms`]: the shapes of the check that were argued about in 2017. [`differential`]
//!   tests each against its calling convention, and [`owner_spin`] shows what each costs its
//!   caller.
//! - [`locks`]: queues, paravirtual locks, reader-writer locks, and locks that limit their
//!   contenders.
//!
//! The jobs of the binary that only the lab uses lie in `lab/jobs/`.

pub mod check_forms;
pub mod differential;
pub mod locks;
pub mod owner_spin;
