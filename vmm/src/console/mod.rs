//! The console: a guest's COM1, connected to the monitor's standard input and output.
//!
//! - [`input`]: standard input reaches the guest's receiver.
//! - [`output`]: what the guest transmits reaches a sink, through a bounded buffer.
//! - [`queue`]: that buffer and its rules: when a vCPU waits, and when bytes are lost.

pub mod input;
pub mod output;
pub mod queue;

pub use input::ConsoleInput;
pub use output::{ConsoleOutput, OutputBuffer};
pub use queue::ConsoleLoss;
