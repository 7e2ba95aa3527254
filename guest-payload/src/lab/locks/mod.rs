//! Locks beyond the core, for comparison.
//!
//! | order | locks |
//! |---|---|
//! | none | [`Virt`] |
//! | strict | [`PvTicket`], [`Mcs`], [`Qspin`] |
//! | loose | [`Preemptable`], [`PvQspin`], [`OwnerQueue`], [`Rwsem`] |
//! | a limited set of contenders | [`Cull`], [`Malthusian`] |
//!
//! Each file names the kernel or paper that it follows and what differs, which vCPU a waiter names
//! as the one it waits for, and why no waiter sleeps forever.

mod cull;
mod links;
mod malthusian;
mod mcs;
mod mcs_queue;
mod owner_queue;
mod preemptable;
mod pv_qspin;
mod pv_ticket;
mod qspin;
mod rwsem;
mod virt;

pub use cull::Cull;
pub use malthusian::Malthusian;
pub use mcs::Mcs;
pub use owner_queue::OwnerQueue;
pub use preemptable::Preemptable;
pub use pv_qspin::{PvQspin, PvState, Variant};
pub use pv_ticket::PvTicket;
pub use qspin::Qspin;
pub use rwsem::Rwsem;
pub use virt::Virt;

#[cfg(test)]
#[cfg(modelled)]
mod models;
#[cfg(test)]
#[cfg(not(modelled))]
pub(crate) mod tests;
