//! The laboratory around the steal-time protocol: everything that measures, and the binary
//! `vmm-lab`.
//!
//! The [`vmm`] crate boots a guest. The [`steal_time`] crate publishes its steal time. This crate
//! runs many such guests, with a payload that reports what it measured, and compares them: locks,
//! ways of waiting, publishers, scheduling policies.
//!
//! The following example measures how accurate a publisher's `preempted` is, as `vmm-lab accuracy`
//! does:
//!
//! ```no_run
//! use host::stdio;
//! use lab::accuracy::{self, AccuracyArgs};
//! use steal_time::publisher::PublisherKind;
//!
//! let args = AccuracyArgs {
//!     publishers: vec![PublisherKind::Bpf, PublisherKind::Perf],
//!     faults: None,
//!     cpus: None,
//!     duration_ms: 1_000,
//!     json: None,
//! };
//! let accuracy = accuracy::run(&args, |publisher| stdio::eprintln(format_args!("{publisher} ...")))?;
//! for row in &accuracy.rows {
//!     match &row.oracle {
//!         Ok(report) => {
//!             let edge = &report.preempted.sched_out;
//!             let (missed, happened) = (edge.missed, edge.happened);
//!             let publisher = row.publisher;
//!             stdio::print(format_args!("{publisher}: {missed} of {happened} missed\n"))?;
//!         }
//!         Err(why) => stdio::print(format_args!("{}: {why}\n", row.publisher))?,
//!     }
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Reading order
//!
//! Data flows from the command line to guests, and back from guests to tables.
//!
//! 1. [`cli`] chooses a command. [`options`] has what several commands' options are made of.
//!    [`error`] maps errors to exit statuses.
//! 2. [`payload`] is the embedded guest. [`guest`] runs one guest: configuration, run hooks,
//!    report. [`window`] has the host's counters for the guest's measured window,
//!    [`directed_yield`] what the host does when a waiter yields to the vCPU it waits for, and
//!    [`fault_injection`] the faults of a publisher.
//! 3. [`policy`] has the scheduling policies, which are pure functions of events. [`sched`] carries
//!    out their decisions on vCPU threads. [`session`] runs several guests under one policy, beside
//!    a load.
//! 4. [`results`] has what a run measured, as JSON. [`render`] and [`render_sched`] print it, with
//!    [`table`]. [`trace`] writes it for Perfetto. [`output`] and [`print`](mod@print) are where it
//!    goes. [`publisher`] chooses a command's publisher, and prints what a refusal costs.
//! 5. The commands: [`demo`] (no command), [`run`], [`bench`](mod@bench), [`accuracy`] with its
//!    [`oracle`], [`conformance`], [`doctor`]. [`runner`] measures points in rounds for several of
//!    them.

pub mod accuracy;
pub mod bench;
pub mod cli;
pub mod conformance;
pub mod demo;
pub mod directed_yield;
pub mod doctor;
pub mod error;
pub mod fault_injection;
pub mod guest;
pub mod options;
pub mod oracle;
pub mod output;
pub mod payload;
pub mod policy;
pub mod print;
pub mod publisher;
pub mod render;
pub mod render_sched;
pub mod results;
pub mod run;
pub mod runner;
pub mod sched;
pub mod session;
pub mod table;
pub mod trace;
pub mod window;
