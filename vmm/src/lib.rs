//! A small KVM monitor: boots a guest and gives it correct steal time.

pub mod boot;
pub mod cli;
pub mod console;
pub mod cpuid;
pub mod escape;
pub mod event_loop;
pub mod guest;
pub mod guest_clock;
pub mod hooks;
pub mod loader;
pub mod memory;
pub mod supervise;
pub mod terminal;
pub mod timings;
pub mod vcpu;
pub mod vm;
