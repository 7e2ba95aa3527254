//! A lab for host preemption policy around the monitor.

pub mod accuracy;
pub mod bench;
pub mod cli;
pub mod conformance;
pub mod demo;
pub mod directed_yield;
pub mod doctor;
pub mod error;
pub mod experiment;
pub mod fault_injection;
pub mod guest;
pub mod oracle;
pub mod output;
pub mod payload;
pub mod policy;
pub mod render;
pub mod render_sched;
pub mod results;
pub mod sched;
pub mod session;
pub mod table;
pub mod trace;
pub mod window;
