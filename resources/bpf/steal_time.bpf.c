// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * The steal-time record, kept true by the host's scheduler.
 *
 * A guest hands over one 64-byte record per vCPU. The record says how long the vCPU wanted to run and could not, and
 * whether the host has it off its CPU at this moment. Only the scheduler knows both in time, so the record is written
 * from inside the context switch, straight into guest memory: the guest pages that hold records are elements of the
 * map `pages`, which the monitor maps over guest RAM.
 *
 *	a vCPU's thread ...                   the record
 *	loses its CPU, still runnable         byte = 1
 *	leaves its CPU to sleep               untouched: the vCPU halted, nobody took anything from it
 *	gets a CPU                            version odd, steal += delay, version even, byte = 0
 *	runs, and nobody traced how it came   the same, as soon as that is noticed
 *	is sent INIT for its vCPU             untouched from now on: INIT has cleared the MSR
 *
 * This is what KVM does for a guest whose MSR it handles itself (kvm_sched_out(), record_steal_time()).
 *
 * Who writes what
 *
 *	record.version, record.steal          this program
 *	record.preempted                      this program; single-byte stores by the vCPU's own thread
 *	slot.site                             the monitor; this program at INIT
 *	slot.parked                           the monitor
 *	slot.accounted                        the monitor before it sets `site`, this program after
 *	slot.running                          this program; the vCPU's own thread before it is enrolled
 *	slot.lose_every                       the monitor
 *	the rest of a slot                    this program
 *	vcpu_of_task                          the monitor
 *
 * One writer at a time, without a lock. A switch is traced with interrupts off, on the CPU that the thread leaves or
 * enters. A timer interrupts the thread on the CPU where it runs, and no switch comes before the program has returned:
 * tracepoints call it with preemption off. When a thread moves, the new CPU has acquired what the old one released
 * (the run queue's lock, p->on_cpu) before it switches to it.
 *
 * Why this order. Another vCPU reads `steal` between two equal, even versions, so the version must turn odd before
 * the first byte of `steal` changes, and even after the last. The byte comes last: who reads 0 finds the delay
 * already in `steal`. x86 shows the stores of one CPU to all others in program order, so it is enough that the
 * compiler keeps it (volatile accesses, and a barrier at each step to say so). A weakly ordered CPU would need a
 * write barrier at each of these steps, in BPF an atomic operation that fetches.
 */
#include <linux/bpf.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>

#define READ_ONCE(x) (*(volatile typeof(x) *)&(x))
#define WRITE_ONCE(x, value) (*(volatile typeof(x) *)&(x) = (value))

/* Of the kernel's types only the fields that are read. The loader replaces each offset with the running kernel's. */
#define KERNEL_TYPE __attribute__((preserve_access_index))

struct rq {
	__u64 clock;
} KERNEL_TYPE;

struct cfs_rq {
	struct rq *rq;
} KERNEL_TYPE;

struct sched_entity {
	struct cfs_rq *cfs_rq;
} KERNEL_TYPE;

struct sched_info {
	__u64 run_delay;
	__u64 last_queued;
} KERNEL_TYPE;

struct task_struct {
	__u32 __state;
	struct sched_entity se;
	struct sched_info sched_info;
} KERNEL_TYPE;

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
	__u64 unused[2];
};

/* A thread's vCPU. Task storage costs a thread without any least: its task_struct says at once that it has none. */
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u32);
} vcpu_of_task SEC(".maps");

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

static __always_inline struct slot *slot_of(struct task_struct *task)
{
	__u32 *vcpu = bpf_task_storage_get(&vcpu_of_task, task, NULL, 0);

	return vcpu ? bpf_map_lookup_elem(&slots, vcpu) : NULL;
}

static __always_inline struct steal_time *record_at(__u64 site)
{
	__u32 index = site >> SITE_PAGE_SHIFT;
	struct page *page;

	if (!(site & SITE_ON))
		return NULL;
	page = bpf_map_lookup_elem(&pages, &index);
	return page ? (void *)(page->byte + (site & SITE_OFFSET)) : NULL;
}

/*
 * The run delay of a thread that is being switched in, as sched_info_arrive() (kernel/sched/stats.h) will leave it:
 * the tracepoint fires before it. Without CONFIG_FAIR_GROUP_SCHED the clock cannot be reached from the task; then
 * the delay that ends here is published with the next one.
 *
 * The clock is read by helper although a typed walk would do: for each pointer loaded through a trusted one, the
 * verifier searches the kernel's whole BTF four times by name (btf_nested_type_is_trusted()). That was 1.1 of the
 * 1.5 ms that this program took to load; the helpers take 12 ns of a vCPU's switch.
 */
static __always_inline __u64 run_delay_at_arrival(struct task_struct *task)
{
	__u64 run_delay = task->sched_info.run_delay;
	__u64 last_queued = task->sched_info.last_queued;

	if (last_queued && bpf_core_field_exists(struct sched_entity, cfs_rq) &&
	    bpf_core_field_exists(struct cfs_rq, rq))
		run_delay += BPF_CORE_READ(task, se.cfs_rq, rq, clock) - last_queued;
	return run_delay;
}

static __always_inline void publish_arrival(struct slot *slot, __u64 site, struct steal_time *record, __u64 run_delay)
{
	__u64 total = run_delay + READ_ONCE(slot->parked);
	/* The next odd number: a guest may have left the version odd. */
	__u32 odd = (READ_ONCE(record->version) + 1) | 1;

	WRITE_ONCE(record->version, odd);
	barrier();
	WRITE_ONCE(record->steal, READ_ONCE(record->steal) + total - slot->accounted);
	slot->accounted = total;
	barrier();
	WRITE_ONCE(record->version, odd + 1);
	barrier();
	if (!(site & SITE_PARKED))
		WRITE_ONCE(record->preempted, 0);
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

static __always_inline void arrive(struct slot *slot, struct task_struct *task)
{
	__u64 lose_every = READ_ONCE(slot->lose_every);
	__u64 site = READ_ONCE(slot->site);
	struct steal_time *record;

	if (lose_every && ++slot->arrivals % lose_every == 0)
		return;
	record = record_at(site);
	if (record)
		publish_arrival(slot, site, record, run_delay_at_arrival(task));
	slot->running = 1;
	slot->ins++;
}

/* A thread that was preempted on its way to sleep is still runnable: `preempt`, with a state that is not 0. */
SEC("tp_btf/sched_switch")
int BPF_PROG(steal_switch, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	struct slot *slot;

	slot = slot_of(prev);
	if (slot)
		leave(slot, preempt || prev->__state == 0);
	slot = slot_of(next);
	if (slot)
		arrive(slot, next);
	return 0;
}

/*
 * Some hosts lose the trace of a switch now and then, and a byte left at 1 would tell the other vCPUs that this one
 * does not run for as long as it does. So it is asked again wherever a vCPU's thread is known to run, and the run delay
 * is final: a thread that runs, and was not seen to come, is treated as it would have been then. The loader attaches
 * this program to two such places:
 *
 *	x86_fpu_regs_activated	the thread's FPU registers are loaded, because another thread had them meanwhile; that
 *				is between the switch-in and the guest
 *	hrtimer_expire_entry	a timer interrupts the thread: the host's tick, and a timer of the monitor's on each CPU
 *				that the vCPUs use, which bounds the lie to a millisecond
 *
 * Neither comes between the trace of a switch and the switch itself, while the thread that leaves is still the current
 * one: interrupts are off, and no registers are loaded for it any more. But the timer may interrupt the first, and to the
 * kernel they are two programs. So one of them claims the arrival, and the other finds that somebody has.
 */
#define HEALING 2	/* `running`: claimed, and not yet published */

SEC("tp_btf")
int steal_heal(void *ctx)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct slot *slot = slot_of(task);
	struct steal_time *record;
	__u64 site;

	if (!slot)
		return 0;
	site = READ_ONCE(slot->site);
	record = record_at(site);
	if (slot->running == 0 && __sync_val_compare_and_swap(&slot->running, 0, HEALING) == 0) {
		if (record)
			publish_arrival(slot, site, record, task->sched_info.run_delay);
		slot->healed++;
		WRITE_ONCE(slot->running, 1);
	} else if (slot->running == 1 && record && READ_ONCE(record->preempted) && !(site & SITE_PARKED)) {
		WRITE_ONCE(record->preempted, 0);
		slot->corrected++;
	}
	return 0;
}

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
	sender = slot_of(bpf_get_current_task_btf());
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
	sender = slot_of(bpf_get_current_task_btf());
	if (!sender || !sender->asserts)
		return 0;
	slot = bpf_map_lookup_elem(&slots, &target);
	if (slot) {
		WRITE_ONCE(slot->site, 0);
		__sync_fetch_and_add(&slot->inits, 1);
	}
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
