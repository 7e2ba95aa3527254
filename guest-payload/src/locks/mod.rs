//! The locks of the core: one trait, one file for each lock.
//!
//! Each file says which vCPU a waiter names as the one it waits for, what a waiter does when its
//! [`crate::spin_wait::WaitPolicy`] says stop, and why no waiter sleeps forever.
//!
//! - [`Tas`]: no order; the lock word names the holder.
//! - [`Ticket`]: in order of arrival, among the vCPUs that run.
//! - [`Mutex`]: optimistic spinning on the owner, as in Linux.

mod lock;
mod mutex;
mod osq;
mod owner_word;
mod tas;
mod ticket;

pub use lock::Lock;
pub use mutex::Mutex;
pub use tas::Tas;
pub use ticket::Ticket;

pub(crate) use lock::{FREE, Padded, decode, encode};
pub(crate) use osq::Osq;
pub(crate) use owner_word::OwnerWord;
pub(crate) use tas::LONGEST_BACKOFF;
