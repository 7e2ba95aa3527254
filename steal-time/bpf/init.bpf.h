/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */
/*
 * INIT. KVM's own reset of a vCPU clears its MSR, but nobody tells a monitor that keeps the MSR in KVM's place: INIT and
 * SIPI do not leave KVM_RUN. What can be seen is their way through the local APICs, in the context of the vCPU that sends
 * them: first what it has written to its command register, then each vCPU that is to take it.
 *
 * An INIT that is level triggered and not asserted is a relic, and no vCPU takes it (__apic_accept_irq()). The second
 * tracepoint does not tell these apart, so the first leaves a note in the sender's slot.
 *
 * Why `site` may be cleared here although it is the monitor's. The vCPU's thread may be handling a write of the MSR at
 * this moment, and set `site` after us. But that thread looks at `inits` before it next enters the guest, and then takes
 * publication back itself. A thread that is inside KVM_RUN sets nothing; there the vCPU waits for SIPI. And if it is just
 * being switched in on its CPU, it may publish this once more, a moment after INIT was sent and before it is taken.
 */
#ifndef INIT_BPF_H
#define INIT_BPF_H

#include "record.bpf.h"

/* The slot of the thread that runs here, if it is a vCPU's: each program has its own way to find it. */
static __always_inline struct slot *slot_of_current(void);

#define DELIVERY_MODE 0x700
#define DELIVERY_INIT 0x500
#define LEVEL_ASSERT 0x4000
#define LEVEL_TRIGGERED 0x8000

/* kvm_apic_ipi(icr_low, dest_id): what a vCPU's thread, the current task, sends. */
SEC("raw_tracepoint")
int steal_ipi(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 command = ctx->args[0];
	struct slot *sender;

	if ((command & DELIVERY_MODE) != DELIVERY_INIT)
		return 0;
	sender = slot_of_current();
	if (sender)
		sender->asserts = (command & LEVEL_ASSERT) || !(command & LEVEL_TRIGGERED);
	return 0;
}

/* kvm_apic_accept_irq(apicid, delivery mode, trigger mode, vector): who takes it. Our vCPUs' APIC ids are their indices. */
SEC("raw_tracepoint")
int steal_init(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 target = ctx->args[0];
	struct slot *sender, *slot;

	if ((__u32)ctx->args[1] != DELIVERY_INIT)
		return 0;
	/* Other machines have vCPUs of the same number. */
	sender = slot_of_current();
	if (!sender || !sender->asserts)
		return 0;
	slot = bpf_map_lookup_elem(&slots, &target);
	if (slot) {
		WRITE_ONCE(slot->site, 0);
		__sync_fetch_and_add(&slot->inits, 1);
	}
	return 0;
}

#endif
