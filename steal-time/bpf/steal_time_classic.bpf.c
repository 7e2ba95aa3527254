// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * Publishes `preempted` alone, for kernels without BTF (CONFIG_DEBUG_INFO_BTF) or without a pidfd
 * that names a thread (before Linux 6.9).
 *
 * Without BTF a program cannot read a task_struct. It gets the tracepoint's record as tracefs
 * describes it: two thread IDs and a state. So it knows which thread leaves and which comes, but
 * not how long a thread has waited.
 *
 *	the vCPU thread ...               the record
 *	is preempted (still runnable)     preempted = 1
 *	blocks                            unchanged
 *	is switched in                    preempted = 0
 *	runs, switch-in not traced        preempted = 0, at the next timer interrupt
 *
 * The vCPU's own thread updates version and steal from its schedstat, outside the guest. A guest
 * that spins does not exit by itself. So at the next timer interrupt the program sends the thread a
 * signal, if the thread was switched in after its last update.
 *
 * In all else the writers are those of steal_time.bpf.c.
 */
#include "record.bpf.h"
#include "init.bpf.h"

/* The vCPU of a thread, by its ID in the initial PID namespace. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} vcpu_of_thread SEC(".maps");

/* events/sched/sched_switch/format in tracefs. The loader refuses a kernel that differs. */
struct sched_switch {
	__u64 common;
	char prev_comm[16];
	__u32 prev_pid;
	__s32 prev_prio;
	__u64 prev_state;
	char next_comm[16];
	__u32 next_pid;
	__s32 next_prio;
};

/* `prev_state` of a preempted thread, in any state: TASK_REPORT_MAX (include/linux/sched.h). */
#define STATE_PREEMPTED 0x100

static __always_inline struct slot *slot_of(__u32 thread)
{
	__u32 *vcpu = bpf_map_lookup_elem(&vcpu_of_thread, &thread);

	return vcpu ? bpf_map_lookup_elem(&slots, vcpu) : NULL;
}

static __always_inline struct slot *slot_of_current(void)
{
	return slot_of(bpf_get_current_pid_tgid());
}

/* Clears `preempted`. Returns whether it was set. */
static __always_inline bool clear_preempted(struct slot *slot)
{
	__u64 addr = READ_ONCE(slot->record_addr);
	struct steal_time *record = record_at(addr);

	if (!record || addr & RECORD_ADDR_DESCHEDULED || !READ_ONCE(record->preempted))
		return false;
	WRITE_ONCE(record->preempted, 0);
	return true;
}

/* The context switch. */
SEC("tracepoint")
int classic_switch(struct sched_switch *traced)
{
	struct slot *slot;

	slot = slot_of(traced->prev_pid);
	if (slot)
		vcpu_sched_out(slot, traced->prev_state == 0 ||
					     traced->prev_state & STATE_PREEMPTED);
	slot = slot_of(traced->next_pid);
	if (slot && !loses_sched_in(slot)) {
		clear_preempted(slot);
		slot->on_cpu = 1;
		slot->sched_in++;
	}
	return 0;
}

/* Repairs a lost switch-in, at the tracepoints of steal_heal(); asks for a steal update. */
SEC("tracepoint")
int classic_heal(void *traced)
{
	struct slot *slot = slot_of_current();
	bool was_set;

	if (!slot)
		return 0;
	was_set = clear_preempted(slot);
	if (!slot->on_cpu) {
		slot->on_cpu = 1;
		slot->healed++;
	} else if (was_set) {
		slot->corrected++;
	}
	if (has_to_judge_init(slot) ||
	    (READ_ONCE(slot->kick_signal) &&
	     slot->sched_in + slot->healed != READ_ONCE(slot->published_seq)))
		bpf_send_signal_thread(slot->kick_signal);
	return 0;
}

/*
 * Returns the current thread's ID in the initial PID namespace. The loader runs it once on each
 * vCPU thread, which may live in another namespace and know another ID.
 */
SEC("raw_tracepoint")
int classic_tid(void *ctx)
{
	return bpf_get_current_pid_tgid();
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
