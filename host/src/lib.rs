//! What Linux reports about CPUs, threads and context switches, and how to influence them.
//!
//! Measurements of scheduling need exact figures of single threads: their run delay, their context
//! switches with timestamps, their CPU affinity and class. This crate reads and sets them through
//! `/proc`, `perf_event_open(2)` and the scheduler's system calls. It knows no KVM guest: a vCPU is
//! a thread here.
//!
//! | module | task |
//! |---|---|
//! | [`stats`] | run time, run delay and switch counts of a thread; busy time of CPUs |
//! | [`thread_times`] | where a thread's time goes: CPU, run delay, sleep, or stopped |
//! | [`thread_probe`] | what another thread has done so far, and does now |
//! | [`perf`] | each context switch of a thread, with its time; a timer interrupt on a CPU |
//! | [`cpus`], [`thread`], [`placement`], [`helper`] | affinity, scheduling classes, helper threads |
//! | [`clock`], [`timer`], [`ticker`] | timestamps, signals at a time, periodic threads |
//! | [`sync`] | locks whose poisoning is ignored |
//! | [`termination`] | signals and the deadline of the process, from its start to its end |
//! | [`stdio`], [`terminal`] | standard output and error without a panic, the raw terminal |
//! | [`capability`] | rights of this process |
//! | [`cpu_hog`] | load that competes for CPUs |
//! | [`child`], [`tracefs`], [`facts`] | child processes, tracepoints, identity of the host |
//! | [`input`] | files to read |
//!
//! How long does the calling thread wait for a CPU?
//!
//! ```
//! use host::stats::RunDelay;
//!
//! let run_delay = RunDelay::of_this_thread()?;
//! let before_ns = run_delay.read_ns()?;
//! std::thread::yield_now();
//! let waited_ns = run_delay.read_ns()? - before_ns;
//! host::stdio::print(format_args!("runnable, but not running, for {waited_ns} ns\n"))?;
//! # Ok::<(), std::io::Error>(())
//! ```

pub mod capability;
pub mod child;
pub mod clock;
pub mod cpu_hog;
pub mod cpus;
pub mod disturbance;
pub mod error_chain;
pub mod facts;
pub mod helper;
pub mod input;
pub mod kick;
pub mod perf;
pub mod placement;
pub mod rate;
pub mod scheduler;
mod signals;
pub mod stats;
pub mod stdio;
pub mod sync;
pub mod terminal;
pub mod termination;
pub mod thread;
pub mod thread_probe;
pub mod thread_times;
pub mod ticker;
pub mod timer;
pub mod tracefs;

/// The size of a page of memory (bytes).
pub const PAGE_SIZE: usize = 4096;
