//! A lab for host preemption policy around the monitor.

pub mod bench;
pub mod cli;
pub mod conformance;
pub mod demo;
pub mod directed_yield;
pub mod doctor;
pub mod error;
pub mod experiment;
pub mod fault_injection;
pub mod fleet;
pub mod guest;
pub mod oracle;
pub mod output;
pub mod payload;
pub mod policy;
pub mod quality;
pub mod render;
pub mod render_steering;
pub mod results;
pub mod steer;
pub mod table;
pub mod trace;
pub mod window;
