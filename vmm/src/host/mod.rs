//! The host: its CPUs, its accounts of threads and CPUs, its log of their switches, and what kind of host it is.

pub mod account;
pub mod aside;
pub mod child;
pub mod clock;
pub mod cpus;
pub mod facts;
pub mod perf;
pub mod thread;
pub mod ticker;
pub mod timer;
pub mod tracefs;
