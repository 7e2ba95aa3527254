//! Oracle: measures how accurate the `preempted` byte of any publisher is.
//!
//! It asks the publisher nothing, and compares two independent sources:
//!
//! - **truth**: perf's record of each context switch of the vCPU thread ([`host::perf`]),
//!   and the intervals in which this monitor descheduled the vCPU;
//! - **observation**: a thread on a CPU of its own that samples the byte ([`sampler`]).
//!
//! Both use `CLOCK_MONOTONIC`. [`judge()`] compares them; it is pure. Incomplete data never counts
//! as correct: a full ring, switches that the scheduler counted but perf did not record, and gaps
//! between samples make the result unknown.

pub mod judge;
pub mod sampler;

pub use judge::{Edge, Judgement, WrongTime, judge};
pub use sampler::{Sampler, Samples};
