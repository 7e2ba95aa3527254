/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */
/*
 * INIT resets a vCPU, and KVM then clears its own copy of the MSR without notifying userspace:
 * INIT and SIPI do not leave KVM_RUN. A monitor that emulates the MSR must detect INIT itself.
 *
 * Two tracepoints of the local APIC show it, both in the context of the vCPU that sends the INIT:
 * first the sender's write of its interrupt command register (ICR), then each vCPU that accepts.
 *
 * A level-triggered INIT without assert ("INIT level de-assert") is ignored by every target
 * (__apic_accept_irq()). The second tracepoint does not show the level, so the first program
 * leaves it in the sender's slot.
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
#define LEVEL_ASSERT 0x4000
#define LEVEL_TRIGGERED 0x8000

/* kvm_apic_ipi(icr_low, dest_id): the current vCPU sends an IPI. */
SEC("raw_tracepoint")
int steal_ipi(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 icr_low = ctx->args[0];
	struct slot *sender;

	if ((icr_low & DELIVERY_MODE) != DELIVERY_INIT)
		return 0;
	sender = slot_of_current();
	if (sender)
		sender->init_asserted = (icr_low & LEVEL_ASSERT) || !(icr_low & LEVEL_TRIGGERED);
	return 0;
}

/*
 * kvm_apic_accept_irq(apicid, delivery_mode, trigger_mode, vector): a vCPU accepts an interrupt.
 * The monitor gives each vCPU its index as APIC ID.
 */
SEC("raw_tracepoint")
int steal_init(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 target = ctx->args[0];
	struct slot *sender, *slot;

	if ((__u32)ctx->args[1] != DELIVERY_INIT)
		return 0;
	/* The vCPUs of other VMs have the same APIC IDs. The sender shows which VM this is. */
	sender = slot_of_current();
	if (!sender || !sender->init_asserted)
		return 0;
	slot = bpf_map_lookup_elem(&slots, &target);
	if (slot) {
		WRITE_ONCE(slot->record_addr, 0);
		__sync_fetch_and_add(&slot->inits, 1);
	}
	return 0;
}

#endif
