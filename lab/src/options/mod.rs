//! Command-line options that several commands share.
//!
//! The `Args` of a command stand beside its code. This module has what they are made of: parsers of
//! values, and options that are built from the table of workload parameters. It imports no command.

pub mod parse;
mod workload;

pub use workload::{LoadArgs, LoadKeys, ParamArgs, ParamKeys, WorkloadArgs, WorkloadKeys};
