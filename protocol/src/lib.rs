//! The contract between a KVM guest and its monitor, for paravirtual steal time.
//!
//! Two programs meet in guest memory: a monitor that publishes one steal-time record per vCPU, and
//! a guest that reads the records of all vCPUs. This crate holds every constant, layout and
//! register value that both need. Neither program depends on the other.
//!
//! - [`kvm`] is KVM's own ABI: the record, the MSR that registers it, and the CPUID bits that offer
//!   it. Any guest that knows KVM knows this part, and Linux does. Read it first.
//! - [`payload`] is the ABI of this repository's test guest: parameters, hints, report.
//!
//! The crate is `no_std`, has no dependency and no `unsafe`. Offsets come from `offset_of!`.
//!
//! # Example: one preemption, seen from both ends
//!
//! ```
//! use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
//! use protocol::kvm::{PREEMPTED, Registration, StealTime};
//!
//! // The guest registers the record of one vCPU: WRMSR(MSR_STEAL_TIME, value).
//! let record = StealTime::new();
//! let value = Registration::At { gpa: 0x20_0040 }.to_msr();
//! assert_eq!(value, 0x20_0041);
//!
//! // The monitor decodes the value. Bits 1 to 5 are reserved.
//! assert_eq!(Registration::from_msr(value), Ok(Registration::At { gpa: 0x20_0040 }));
//! assert!(Registration::from_msr(value | 2).is_err());
//!
//! // The host preempts the vCPU. Another vCPU that waits for a lock of this one stops spinning.
//! record.preempted.store(PREEMPTED, Relaxed);
//! assert_ne!(record.preempted.load(Relaxed), 0);
//!
//! // The host schedules the vCPU in again, after 3 ms on the run queue.
//! record.preempted.store(0, Relaxed);
//! let version = record.version.load(Relaxed);
//! record.version.store(version + 1, Release); // odd: the update has begun
//! record.steal.fetch_add(3_000_000, Release);
//! record.version.store(version + 2, Release); // even: the update is complete
//!
//! // The guest charges the time to steal, not to the task that was running.
//! assert_eq!(record.steal.load(Acquire), 3_000_000);
//! ```

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod kvm;
pub mod payload;
mod vcpu_id;

pub use vcpu_id::{MAX_VCPUS, VcpuId};
