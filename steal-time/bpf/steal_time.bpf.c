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
 *	slot.lose_every, slot.kick            the monitor
 *	slot.told                             the vCPU's own thread
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
#include "record.bpf.h"
#include "init.bpf.h"
#include <bpf/bpf_core_read.h>

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

/* A thread's vCPU. Task storage costs a thread without any least: its task_struct says at once that it has none. */
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u32);
} vcpu_of_task SEC(".maps");

static __always_inline struct slot *slot_of(struct task_struct *task)
{
	__u32 *vcpu = bpf_task_storage_get(&vcpu_of_task, task, NULL, 0);

	return vcpu ? bpf_map_lookup_elem(&slots, vcpu) : NULL;
}

static __always_inline struct slot *slot_of_current(void)
{
	return slot_of(bpf_get_current_task_btf());
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

static __always_inline void arrive(struct slot *slot, struct task_struct *task)
{
	__u64 site = READ_ONCE(slot->site);
	struct steal_time *record = record_at(site);

	if (overlooks(slot))
		return;
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

char LICENSE[] SEC("license") = "Dual MIT/GPL";
