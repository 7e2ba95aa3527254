//! Nothing but tests: see `tests/trace.rs`.
