//! The host: its CPUs, its accounts of threads and CPUs, and what kind of host it is.

pub mod account;
pub mod child;
pub mod cpus;
pub mod facts;
pub mod thread;
