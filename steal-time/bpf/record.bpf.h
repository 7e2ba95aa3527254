/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */
/*
 * What both programs share: the guest's record, its address, the slot of a vCPU, and the path that
 * a vCPU thread takes when it is switched out.
 *
 * steal_time.bpf.c is the full program. steal_time_classic.bpf.c replaces it on kernels without
 * BTF, and publishes `preempted` alone.
 */
#ifndef RECORD_BPF_H
#define RECORD_BPF_H

#include <linux/bpf.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#define READ_ONCE(x) (*(volatile typeof(x) *)&(x))
#define WRITE_ONCE(x, value) (*(volatile typeof(x) *)&(x) = (value))

/* The record: struct kvm_steal_time, arch/x86/include/uapi/asm/kvm_para.h. */
struct steal_time {
	__u64 steal;	/* time for which the vCPU was runnable and did not run, ns */
	__u32 version;	/* odd while `steal` changes */
	__u32 flags;
	__u8 preempted;	/* KVM_VCPU_PREEMPTED: the host has taken the vCPU's CPU */
	__u8 padding[47];
};

/* A page of guest memory that holds one or more records. */
struct page {
	__u8 byte[4096];
};

/*
 * The address of a vCPU's record, in one word:
 *
 *	index in `pages` << 12 | offset in the page | RECORD_ADDR_DESCHEDULED | RECORD_ADDR_PUBLISH
 *
 * The monitor starts, stops or moves publication by one store. A switch that races with the store
 * sees either the old word or the new one.
 */
#define RECORD_ADDR_PUBLISH 1	  /* publish; without this bit the record is not touched */
#define RECORD_ADDR_DESCHEDULED 2 /* the monitor has descheduled the vCPU: `preempted` stays set */
#define RECORD_ADDR_OFFSET 0xfc0
#define RECORD_ADDR_PAGE_SHIFT 12

/*
 * The state of one vCPU, shared by program and monitor. It fills two cache lines, so that no two
 * vCPUs share one. Counts start at 0 when the program is loaded, and only grow.
 */
struct slot {
	__u64 record_addr;    /* where to publish; see above */
	__u64 accounted_ns;   /* run delay and descheduled time that `steal` already contains */
	__u64 descheduled_ns; /* total time for which the monitor kept the vCPU from running */
	__u64 sched_out;      /* switched out while runnable: preemptions */
	__u64 sched_in;	      /* switched in, and the switch was traced */
	__u64 blocked;	      /* switched out to sleep */
	__u64 healed;	      /* found on a CPU although no switch-in was traced */
	__u32 inits;	      /* INITs that a vCPU with this APIC ID was sent */
	__u32 inits_settled;  /* `inits` when the last of them was SETTLE_NS old */
	__u64 init_at;	      /* when the last of them was sent, in bpf_ktime_get_ns() */
	__u64 on_cpu;	      /* the thread has a CPU, as far as the program knows */
	__u64 unseen;	      /* switched out before its untraced switch-in was found */
	__u64 corrected;      /* found on a CPU, as known, but with `preempted` set */
	__u64 lose_every;     /* fault injection: ignore every n-th switch-in; 0: none */
	__u64 sched_in_seq;   /* fault injection: switch-ins while `lose_every` was set */
	__u64 published_seq;  /* classic: sched_in + healed at the thread's last steal update */
	__u32 kick_signal;    /* signal by which the thread leaves the guest; 0: none */
	__u32 inits_judged;   /* `inits` when the thread last knew whether they reset its vCPU */
};

/* One slot a vCPU. The loader sets max_entries of this map and of `pages`. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct slot);
} slots SEC(".maps");

/* The guest pages that hold records. The monitor maps each element over a page of guest memory. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct page);
} pages SEC(".maps");

/* The record at this address, or NULL if nothing is published there. */
static __always_inline struct steal_time *record_at(__u64 addr)
{
	__u32 index = addr >> RECORD_ADDR_PAGE_SHIFT;
	struct page *page;

	if (!(addr & RECORD_ADDR_PUBLISH))
		return NULL;
	page = bpf_map_lookup_elem(&pages, &index);
	return page ? (void *)(page->byte + (addr & RECORD_ADDR_OFFSET)) : NULL;
}

/* The thread loses its CPU. Only a runnable thread is preempted: a halted vCPU loses nothing. */
static __always_inline void vcpu_sched_out(struct slot *slot, bool runnable)
{
	struct steal_time *record;

	if (!slot->on_cpu)
		slot->unseen++;
	slot->on_cpu = 0;
	if (!runnable) {
		slot->blocked++;
		return;
	}
	record = record_at(READ_ONCE(slot->record_addr));
	if (record)
		WRITE_ONCE(record->preempted, 1);
	slot->sched_out++;
}

/* Fault injection: whether to ignore this switch-in, as a host does that loses a trace. */
static __always_inline bool loses_sched_in(struct slot *slot)
{
	__u64 lose_every = READ_ONCE(slot->lose_every);

	return lose_every && ++slot->sched_in_seq % lose_every == 0;
}

#endif
