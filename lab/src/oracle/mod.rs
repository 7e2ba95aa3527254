//! The oracle: how true is the byte?
//!
//! It stands beside any publisher, asks it nothing, and compares two independent witnesses:
//!
//! - **the truth**: perf's own record of each switch of the vCPU's thread ([`host::perf`]), and the times for
//!   which this monitor held the vCPU;
//! - **what was seen**: a thread on a CPU of its own that does nothing but look at the byte ([`looks`]).
//!
//! Both carry stamps of one clock. [`judge()`] puts them together; it is pure. Where a witness has missed something, the
//! verdict is that nothing is known, never that all is well: a full ring, switches that the scheduler counts and the ring
//! does not have, looks that were too far apart.

pub mod judge;
pub mod looks;

pub use judge::{Direction, Edge, Judgement, judge};
pub use looks::{Looker, Looks};
