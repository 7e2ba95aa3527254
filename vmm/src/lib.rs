//! The monitor.

pub mod publisher;
