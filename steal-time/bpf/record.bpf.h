/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */
/*
 * What both programs share: the record, where it lies, what is known of its vCPU, and a thread's way off its CPU.
 *
 * steal_time.bpf.c is the program. steal_time_classic.bpf.c takes its place where the kernel does not describe its types,
 * and does less.
 */
#ifndef RECORD_BPF_H
#define RECORD_BPF_H

#include <linux/bpf.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#define READ_ONCE(x) (*(volatile typeof(x) *)&(x))
#define WRITE_ONCE(x, value) (*(volatile typeof(x) *)&(x) = (value))

/* The record: KVM's ABI, arch/x86/include/uapi/asm/kvm_para.h. */
struct steal_time {
	__u64 steal;
	__u32 version;
	__u32 flags;
	__u8 preempted;
	__u8 padding[47];
};

/* A page of guest memory that holds records, several perhaps. */
struct page {
	__u8 byte[4096];
};

/*
 * Where a vCPU's record lies, in one word: page << 12 | offset in the page | these bits. One store of the monitor
 * switches publication on, off, or elsewhere, and a switch that comes in between sees the old word or the new one.
 */
#define SITE_ON 1	/* publish; without this bit the record is not touched */
#define SITE_PARKED 2	/* the vCPU may not run, whatever its thread does: leave the byte alone */
#define SITE_OFFSET 0xfc0
#define SITE_PAGE_SHIFT 12

/* What monitor and program share about one vCPU. Two cache lines, so that vCPUs do not share one. */
struct slot {
	__u64 site;
	__u64 accounted; /* run delay and time parked that are in `steal` already, ns */
	__u64 parked;	 /* time for which the monitor kept this vCPU from running, ns, ever growing */
	__u64 outs;	 /* switched out while runnable */
	__u64 ins;	 /* switched in */
	__u64 sleeps;	 /* switched out to sleep */
	__u64 healed;	 /* found running although no switch in was traced */
	__u64 inits;	 /* INITs that it was sent */
	__u64 asserts;	 /* whether the last INIT that it sent was to be taken */
	__u64 running;	 /* whether it has a CPU, as far as is known here */
	__u64 unseen;	 /* switched out without ever having been found running: an in that neither `ins` nor `healed` has */
	__u64 corrected; /* found running as it should, with its byte set */
	__u64 lose_every;/* overlook each so many-th switch in, on purpose; 0: none */
	__u64 arrivals;	 /* switches in while some were to be overlooked */
	__u64 told;	 /* classic: `ins` and `healed` when the vCPU's thread last told its steal */
	__u64 kick;	 /* classic: the signal that makes the thread leave the guest to tell it; 0: none */
};

/* By vCPU. The loader sets the number of entries of this map and of the next. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct slot);
} slots SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct page);
} pages SEC(".maps");

static __always_inline struct steal_time *record_at(__u64 site)
{
	__u32 index = site >> SITE_PAGE_SHIFT;
	struct page *page;

	if (!(site & SITE_ON))
		return NULL;
	page = bpf_map_lookup_elem(&pages, &index);
	return page ? (void *)(page->byte + (site & SITE_OFFSET)) : NULL;
}

static __always_inline void leave(struct slot *slot, bool runnable)
{
	struct steal_time *record;

	if (!slot->running)
		slot->unseen++;
	slot->running = 0;
	if (!runnable) {
		slot->sleeps++;
		return;
	}
	record = record_at(READ_ONCE(slot->site));
	if (record)
		WRITE_ONCE(record->preempted, 1);
	slot->outs++;
}

/* Whether this switch in is one of those that are overlooked on purpose, as some hosts do by themselves. */
static __always_inline bool overlooks(struct slot *slot)
{
	__u64 lose_every = READ_ONCE(slot->lose_every);

	return lose_every && ++slot->arrivals % lose_every == 0;
}

#endif
