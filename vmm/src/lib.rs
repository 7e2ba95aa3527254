//! A KVM monitor that owns the steal-time protocol from end to end.
//!
//! Reading order, which is also the order in which data flows:
//!
//! 1. [`cli`] and [`guest`]: what is asked for, and one guest from its configuration to what is left of it.
//! 2. [`steal_time`]: the idea, and the MSR.
//! 3. [`publisher`]: who keeps the record true, and the page laid over the guest's that makes it possible;
//!    [`publisher::bpf`] does it from the scheduler.
//! 4. [`vcpu`], [`kick`], [`gate`]: the run loop and its exits, how it is left, and where its threads stop.
//! 5. [`vm`], [`memory`], [`loader`], [`boot`], [`cpuid`]: the machine, and how a guest begins in it.
//! 6. [`event_loop`], [`console`], [`terminal`], [`escape`]: the main thread, and what a user types;
//!    [`progress`], [`measure`], [`host`]: a guest under way, and what the host has counted.
//! 7. [`results`], [`render`], [`render_steering`], [`table`], [`output`]: a run as a document, and what is printed of it.
//! 8. [`policy`], [`steer`], [`fleet`], [`trace`]: who is to run when, how that is made so for one guest or several, and what it
//!    looked like.
//! 9. [`oracle`], [`quality`]: how true the byte is, by somebody who asks no publisher.
//! 10. [`experiment`], [`demo`], [`mod@bench`], [`conformance`], [`doctor`]: what is made of all that.

pub mod bench;
pub mod boot;
pub mod causes;
pub mod cli;
pub mod conformance;
pub mod console;
pub mod cpuid;
pub mod demo;
pub mod directed_yield;
pub mod doctor;
pub mod error;
pub mod escape;
pub mod event_loop;
pub mod experiment;
pub mod fault_injection;
pub mod fleet;
pub mod gate;
pub mod guest;
pub mod guest_clock;
pub mod hooks;
pub mod host;
pub mod kick;
pub mod lab_guest;
pub mod loader;
pub mod memory;
pub mod oracle;
pub mod output;
pub mod payload;
pub mod policy;
pub mod progress;
pub mod publisher;
pub mod quality;
pub mod render;
pub mod render_steering;
pub mod results;
pub mod steal_time;
pub mod steer;
pub mod table;
pub mod terminal;
pub mod timings;
pub mod trace;
pub mod vcpu;
pub mod vm;
pub mod window;
