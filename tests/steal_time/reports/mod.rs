//! What users of steal time have reported, tried on guests.
//!
//! `resources/reports.md` lists all reports, also those that other tests hold.

mod restore;
mod sharing;
