//! The package holds only tests: `tests/trace.rs`.
