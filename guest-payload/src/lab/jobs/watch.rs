//! Watch: spin, and sample `preempted` of the own record and of all others.
//!
//! No vCPU halts here, so a sampled vCPU either runs or was preempted.

use core::sync::atomic::Ordering;

use guest_payload::check::{Check, Save0};
use guest_payload::steal_time::record_of;
use protocol::VcpuId;

use crate::jobs::frame::Part;
use crate::metal::clock;

pub(crate) fn run(part: Part) {
    let me = part.machine.vcpu.id;
    let own = record_of(me);
    part.spin_until_open();
    let (mut own_samples, mut own_set, mut other_samples, mut other_set) = (0, 0, 0, 0);
    let mut others = VcpuId::first(part.machine.vcpus).filter(|vcpu| *vcpu != me).cycle();
    while !part.window.is_over(clock::now()) {
        own_samples += 1;
        own_set += u64::from(own.preempted() != 0);
        if let Some(other) = others.next() {
            other_samples += 1;
            other_set += u64::from(Save0::is_preempted(other));
        }
    }
    part.close();
    let report = part.report;
    report.own_samples.store(own_samples, Ordering::Relaxed);
    report.own_set.store(own_set, Ordering::Relaxed);
    report.other_samples.store(other_samples, Ordering::Relaxed);
    report.other_set.store(other_set, Ordering::Relaxed);
}
