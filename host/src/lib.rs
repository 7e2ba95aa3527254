//! What Linux reports about CPUs, threads, clocks and context switches, and kicks between threads.

pub mod account;
pub mod aside;
pub mod child;
pub mod clock;
pub mod cpus;
pub mod error_chain;
pub mod facts;
pub mod kick;
pub mod perf;
pub mod thread;
pub mod ticker;
pub mod timer;
pub mod tracefs;
