/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */
/*
 * INIT resets a vCPU, and KVM then clears its own copy of the MSR without notifying userspace:
 * INIT and SIPI do not leave KVM_RUN. A monitor that emulates the MSR must detect INIT itself.
 *
 * Each INIT passes __apic_accept_irq(), which traces the target's APIC ID, in the context of its
 * sender:
 *
 *	sender of the INIT                          context
 *	a vCPU's interrupt command register (ICR)   the thread of that vCPU
 *	an I/O APIC's pin, a message (MSI)          a vCPU thread, the PIT's thread, a worker of the
 *	                                            kernel, the task that signals an irqfd
 *
 * A kernel thread does not show its VM, and the vCPUs of other VMs have the same APIC IDs. So the
 * program withdraws the record of the vCPU with this ID at once, and leaves the judgement to that
 * vCPU's thread: KVM's own copy of its MSR shows whether its vCPU was reset (src/init_witness.rs).
 * If not, the thread publishes again. Only an INIT that another VM's ICR sends is known to be a
 * stranger's: its sender is no thread of ours, and has just been traced by kvm_apic_ipi.
 *
 * Both tracepoints fire before KVM marks the INIT as pending. A judgement before that would miss
 * it. So the thread judges when the last INIT is SETTLE_NS old, and is kicked out of the guest then.
 *
 * The program may clear `record_addr` although the monitor owns it. There are three cases:
 *
 *	the target's thread is ...
 *	handling a write of the MSR   it may set `record_addr` after us. Before the next entry it
 *	                              reads `inits`, and withdraws
 *	inside KVM_RUN                it waits for SIPI, and stores nothing
 *	being switched in             one last publication may land after the INIT is sent and
 *	                              before it is accepted
 */
#ifndef INIT_BPF_H
#define INIT_BPF_H

#include "record.bpf.h"

/* The slot of the current thread, or NULL for other tasks. Each program has its own lookup. */
static __always_inline struct slot *slot_of_current(void);

#define DELIVERY_MODE 0x700
#define DELIVERY_INIT 0x500

/* KVM marks an INIT as pending within this time after its trace: a few instructions later. */
#define SETTLE_NS 1000000

/* The task that sent the last IPI on this CPU, if that was an INIT of another VM; else 0. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} stranger SEC(".maps");

/* kvm_apic_ipi(icr_low, dest_id): the current thread's vCPU sends an IPI. */
SEC("raw_tracepoint")
int steal_ipi(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 *task = bpf_map_lookup_elem(&stranger, &(__u32){0});
	bool is_init = ((__u32)ctx->args[0] & DELIVERY_MODE) == DELIVERY_INIT;

	if (task && (is_init || *task))
		*task = is_init && !slot_of_current() ? bpf_get_current_pid_tgid() : 0;
	return 0;
}

/*
 * kvm_apic_accept_irq(apicid, delivery_mode, trigger_mode, vector): a vCPU accepts an interrupt.
 * The monitor gives each vCPU its index as APIC ID. KVM ignores an INIT level de-assert, which looks
 * the same here: the vCPU's thread finds that nothing was reset.
 */
SEC("raw_tracepoint")
int steal_init(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 target = ctx->args[0];
	struct slot *slot;
	__u64 *task;

	if ((__u32)ctx->args[1] != DELIVERY_INIT)
		return 0;
	task = bpf_map_lookup_elem(&stranger, &(__u32){0});
	if (task && *task && *task == bpf_get_current_pid_tgid())
		return 0;
	slot = bpf_map_lookup_elem(&slots, &target);
	if (slot) {
		WRITE_ONCE(slot->record_addr, 0);
		WRITE_ONCE(slot->init_at, bpf_ktime_get_ns());
		__sync_fetch_and_add(&slot->inits, 1);
	}
	return 0;
}

/*
 * The current thread's vCPU was sent INIT, and the thread can and has to find out whether that
 * reset it. Returns whether to kick the thread out of the guest for it.
 */
static __always_inline bool has_to_judge_init(struct slot *slot)
{
	__u32 inits = READ_ONCE(slot->inits);

	if (inits == READ_ONCE(slot->inits_judged))
		return false;
	if (bpf_ktime_get_ns() - READ_ONCE(slot->init_at) < SETTLE_NS)
		return false;
	WRITE_ONCE(slot->inits_settled, inits);
	return READ_ONCE(slot->kick_signal);
}

#endif
