//! Publishers.

pub mod bpf;
