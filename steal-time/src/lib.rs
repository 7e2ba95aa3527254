//! Steal time: one word that host and guest share about a vCPU that is not running.
//!
//! A guest that spins for a vCPU which the host has taken off its CPU wastes its time, and cannot know. KVM's answer
//! is a 64-byte record per vCPU in guest memory ([`protocol::kvm::StealTime`]). Four channels carry it, and
//! this module and [`crate::publisher`] own all four:
//!
//! 1. **CPUID** says that the MSR exists ([`crate::cpuid`]).
//! 2. **The MSR** takes the record's address ([`vcpu`]). A filter makes KVM hand each access to us.
//! 3. **The record** is guest memory that somebody must be able to write at any moment, from the scheduler itself.
//!    The page that holds it is therefore laid over by a page that a BPF program can reach ([`crate::publisher::overlay`]).
//! 4. **The words in it** have an order that every writer keeps ([`crate::publisher::record`]).
//!
//! All of it can be saved and restored, while the guest is paused ([`saved`]).
//!
//! What the byte means here: 1 when the host took the vCPU's thread off its CPU although the thread wanted to run; 0
//! when it runs, halts, is paused by the user, or is handling an exit.

pub mod bpf;
pub mod cpuid;
pub mod filter;
pub mod host_vm;
pub mod kvm_msr;
pub mod publisher;
pub mod saved;
pub mod vcpu;
pub mod vm;
