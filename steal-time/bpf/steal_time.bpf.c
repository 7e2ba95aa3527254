// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * Publishes KVM's steal-time records from inside the host's context switch.
 *
 * A guest registers one 64-byte record per vCPU (MSR_KVM_STEAL_TIME). The record holds the time
 * for which the vCPU was runnable but did not run, and whether the vCPU is preempted right now.
 * Only the scheduler knows both in time, so this program runs at sched_switch and stores into guest
 * memory: the guest pages that hold records are elements of the map `pages`, which the monitor maps
 * over guest RAM.
 *
 *	the vCPU thread ...               the record
 *	is preempted (still runnable)     preempted = 1
 *	blocks (the vCPU halted)          unchanged: the host took nothing away
 *	is switched in                    version odd, steal += delay, version even, preempted = 0
 *	runs, switch-in not traced        the same, at the next timer interrupt
 *	is sent INIT for its vCPU         no longer written: INIT has cleared the MSR; or written
 *	                                  again, if the INIT was another VM's
 *
 * KVM does the same for a guest whose MSR it handles itself: kvm_sched_out() leads to
 * kvm_steal_time_set_preempted(), and the next entry to record_steal_time().
 *
 * Writers
 *
 *	record.version, record.steal      this program
 *	record.preempted                  this program; the vCPU's own thread, by single-byte stores
 *	slot.record_addr                  the monitor; this program at INIT
 *	slot.accounted_ns                 the monitor before it sets record_addr, this program after
 *	slot.descheduled_ns               the monitor
 *	slot.on_cpu, unseen               this program; the vCPU's own thread, by atomic operations
 *	slot.lose_every, kick_signal      the monitor
 *	slot.published_seq, inits_judged  the vCPU's own thread
 *	all other fields of a slot        this program
 *	vcpu_of_task                      the monitor
 *
 * There is one writer at a time, and no lock. sched_switch fires with interrupts off, on the CPU
 * that the thread leaves or enters. A timer interrupts the thread on the CPU where it runs, and no
 * switch follows before the program returns: a tracepoint calls it with preemption off. When a
 * thread migrates, the new CPU acquires what the old one released (the run queue's lock, p->on_cpu)
 * before it switches to the thread.
 *
 * Order of the stores. Another vCPU accepts `steal` if it reads the same even version before and
 * after it. So the version turns odd before `steal` changes, and even afterwards. `preempted` comes
 * last: a vCPU that reads 0 finds the delay already in `steal`. On x86, stores become visible to
 * all CPUs in program order, so it is enough that the compiler keeps that order: accesses are
 * volatile, and barrier() separates the steps. A weakly ordered CPU would need a write barrier at
 * each step (in BPF, an atomic read-modify-write that returns the old value).
 */
#include "record.bpf.h"
#include "init.bpf.h"
#include <bpf/bpf_core_read.h>

/*
 * The kernel's types, reduced to the fields that are read here. CO-RE: the loader replaces each
 * offset by that of the running kernel.
 */
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

/*
 * The vCPU of a thread. Task storage is cheapest for the tasks that are no vCPU: a pointer in
 * task_struct shows at once that they have none.
 */
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
 * The run delay of a thread that is being switched in. The tracepoint fires before
 * sched_info_arrive() (kernel/sched/stats.h) adds the wait that ends now, so it is added here.
 * Without CONFIG_FAIR_GROUP_SCHED no path leads from the task to the clock of its run queue; this
 * wait is then published at the next switch-in.
 *
 * BPF_CORE_READ() calls a helper for each pointer: 12 ns per switch of a vCPU. A direct walk takes
 * no call, but is slow to load: for each pointer loaded through a trusted one, the verifier
 * searches all of the kernel's BTF four times by name (btf_nested_type_is_trusted()). That was
 * 1.1 ms of a load time of 1.5 ms.
 */
static __always_inline __u64 run_delay_at_sched_in(struct task_struct *task)
{
	__u64 run_delay = task->sched_info.run_delay;
	__u64 last_queued = task->sched_info.last_queued;

	if (last_queued && bpf_core_field_exists(struct sched_entity, cfs_rq) &&
	    bpf_core_field_exists(struct cfs_rq, rq))
		run_delay += BPF_CORE_READ(task, se.cfs_rq, rq, clock) - last_queued;
	return run_delay;
}

/* Adds to `steal` what it lacks, and clears `preempted` unless the monitor descheduled the vCPU. */
static __always_inline void publish_sched_in(struct slot *slot, __u64 addr,
					     struct steal_time *record, __u64 run_delay)
{
	__u64 total = run_delay + READ_ONCE(slot->descheduled_ns);
	/* The next odd number, whatever the guest left there: it may have left an odd one. */
	__u32 odd = (READ_ONCE(record->version) + 1) | 1;

	WRITE_ONCE(record->version, odd);
	barrier();
	WRITE_ONCE(record->steal, READ_ONCE(record->steal) + total - slot->accounted_ns);
	slot->accounted_ns = total;
	barrier();
	WRITE_ONCE(record->version, odd + 1);
	barrier();
	if (!(addr & RECORD_ADDR_DESCHEDULED))
		WRITE_ONCE(record->preempted, 0);
}

/* The thread gets a CPU. */
static __always_inline void vcpu_sched_in(struct slot *slot, struct task_struct *task)
{
	__u64 addr = READ_ONCE(slot->record_addr);
	struct steal_time *record = record_at(addr);

	if (loses_sched_in(slot))
		return;
	if (record)
		publish_sched_in(slot, addr, record, run_delay_at_sched_in(task));
	slot->on_cpu = 1;
	slot->sched_in++;
}

/*
 * The context switch. A thread that is preempted on its way to sleep is still runnable, although
 * its state is not TASK_RUNNING: hence `preempt`.
 */
SEC("tp_btf/sched_switch")
int BPF_PROG(steal_switch, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	struct slot *slot;

	slot = slot_of(prev);
	if (slot)
		vcpu_sched_out(slot, preempt || prev->__state == 0);
	slot = slot_of(next);
	if (slot)
		vcpu_sched_in(slot, next);
	return 0;
}

/*
 * Repairs a lost switch-in. Some hosts lose the trace of a switch now and then; `preempted` would
 * then stay 1 for as long as the vCPU runs. So the loader attaches this program to two more
 * tracepoints, where the current thread is known to run and its run delay is final:
 *
 *	x86_fpu_regs_activated   the thread's FPU registers are loaded, since another thread used
 *	                         them: after the switch-in, before the guest is entered
 *	hrtimer_expire_entry     a timer interrupts the thread: the scheduler's tick, or the
 *	                         monitor's timer on each CPU of the vCPUs, which fires every 900 us
 *
 * Neither tracepoint fires between sched_switch and the switch itself, where the thread that leaves
 * is still current: interrupts are off, and its FPU registers are not loaded any more. The timer
 * may interrupt the program at the first tracepoint, since the kernel sees two programs. So one of
 * them claims the switch-in by a compare-and-swap, and the other finds it claimed.
 */
#define HEALING 2 /* on_cpu: the switch-in is claimed, and not yet published */

SEC("tp_btf")
int steal_heal(void *ctx)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct slot *slot = slot_of(task);
	struct steal_time *record;
	__u64 addr;

	if (!slot)
		return 0;
	addr = READ_ONCE(slot->record_addr);
	record = record_at(addr);
	if (slot->on_cpu == 0 && __sync_val_compare_and_swap(&slot->on_cpu, 0, HEALING) == 0) {
		if (record)
			publish_sched_in(slot, addr, record, task->sched_info.run_delay);
		slot->healed++;
		WRITE_ONCE(slot->on_cpu, 1);
	} else if (slot->on_cpu == 1 && record && READ_ONCE(record->preempted) &&
		   !(addr & RECORD_ADDR_DESCHEDULED)) {
		WRITE_ONCE(record->preempted, 0);
		slot->corrected++;
	}
	if (has_to_judge_init(slot))
		bpf_send_signal_thread(slot->kick_signal);
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
