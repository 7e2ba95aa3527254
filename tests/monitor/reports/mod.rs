//! What users of steal time have reported, tried on the monitor.
//!
//! `resources/reports.md` lists all reports, also those that other tests hold.

mod host_side;
mod linux;
