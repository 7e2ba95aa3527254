//! Paravirtual steal time for KVM monitors.
//!
//! A guest that spins for a vCPU which the host has preempted wastes its time. KVM's steal-time
//! protocol makes preemption visible: a 64-byte record per vCPU in guest memory
//! ([`protocol::kvm::StealTime`]) holds the time for which the vCPU waited for a CPU, and a byte
//! `preempted`. This library implements the host's end of the protocol for any monitor built on
//! rust-vmm crates.
//!
//! `preempted` is 1 when the host took the vCPU thread's CPU although the thread was runnable. It
//! is 0 while the vCPU runs, halts, is paused, or its thread handles an exit.
//!
//! # A monitor with steal time
//!
//! The monitor implements [`HostVm`], creates one [`StealTime`], and attaches each vCPU thread. Two
//! vCPUs share one host CPU here, and each guest reads that the other is preempted:
//!
//! ```no_run
#![doc = include_str!("../examples/attach.rs")]
//! ```
//!
//! # Publishers
//!
//! A publisher keeps the records up to date ([`publisher`]). [`PublisherChoice::Auto`] takes the
//! first of `bpf`, `bpf-classic`, `perf` and `monitor` that the host allows.
//!
//! | publisher | writer of version and steal | writer of `preempted` | needs |
//! |---|---|---|---|
//! | `bpf` | BPF program, in the context switch | the same | `CAP_BPF`, `CAP_PERFMON`, kernel BTF, Linux 6.9 |
//! | `bpf-classic` | the vCPU's thread, before entry | BPF program, in the context switch | `CAP_BPF`, `CAP_PERFMON`, tracefs, Linux 5.12 |
//! | `perf` | the vCPU's thread, before entry | an observer thread, 25 to 40 us after the switch | perf events: `perf_event_paranoid` 2 or less, or `CAP_PERFMON` |
//! | `monitor` | the vCPU's thread, before entry | the vCPU's thread, only if the monitor deschedules it | KVM |
//! | `kernel` | KVM | KVM; some backends never set it | KVM's own steal time |
//! | `off` | none | none; CPUID lacks the feature | |
//!
//! `bpf-classic`, `perf` and `monitor` kick vCPU threads: they need [`HostVm::kick_signal`].
//!
//! # The four channels
//!
//! 1. **CPUID** announces the MSR ([`StealTime::add_cpuid`]).
//! 2. **The MSR** takes the address of the record. A filter makes KVM pass each access to userspace
//!    ([`StealTime::filter_msr`], [`VcpuStealTime::wrmsr`]).
//! 3. **The record** lies in a guest page that the scheduler must be able to write at any moment. A
//!    page of a BPF map is mapped over it ([`publisher::overlay`]).
//! 4. **Entries and exits** bound what the vCPU's thread may write
//!    ([`VcpuStealTime::before_entry`], [`pause`](VcpuStealTime::pause),
//!    [`deschedule`](VcpuStealTime::deschedule)).
//!
//! Steal time is saved and restored while the guest is paused ([`saved`]).

pub mod bpf;
pub mod cpuid;
mod error;
pub mod filter;
pub mod host_vm;
mod init_witness;
pub mod kvm_msr;
pub mod publisher;
pub mod saved;
mod vcpu;
mod vm;

pub use error::StealTimeError;
pub use host_vm::{AllStopped, HostVm};
pub use protocol::{self, VcpuId};
pub use publisher::{PublisherChoice, PublisherKind};
pub use saved::{SavedStealTime, SavedVcpu};
pub use vcpu::{Access, VcpuStealTime};
pub use vm::StealTime;
