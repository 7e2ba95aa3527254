// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * The byte alone, for kernels that do not describe their types (no CONFIG_DEBUG_INFO_BTF), or have no descriptor that
 * names a thread (before Linux 6.9).
 *
 * Here a program cannot read a task_struct. What it is told of a switch is what the tracepoint's record holds, which is
 * in text in tracefs: two thread ids, and a state. So it knows who leaves and who comes, and not for how long anybody
 * waited.
 *
 *	a vCPU's thread ...                   the record
 *	loses its CPU, still runnable         byte = 1
 *	leaves its CPU to sleep               untouched
 *	gets a CPU                            byte = 0
 *	runs, and nobody traced how it came   the same, as soon as that is noticed
 *
 * Version and steal are written by the vCPU's own thread, outside the guest, from its schedstat. A guest that spins does not
 * leave by itself, so a thread that has got a CPU, and has not told since, is sent a signal by the next timer.
 *
 * Who writes what is as in steal_time.bpf.c but for that.
 */
#include "record.bpf.h"
#include "init.bpf.h"

/* By thread id, as the kernel's first pid namespace counts: a thread's vCPU. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} vcpu_of_thread SEC(".maps");

/*
 * What the tracepoint tells: events/sched/sched_switch/format in tracefs, which the loader compares with this.
 */
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

/* `prev_state` of a thread that was preempted, whatever it was about to do: TASK_REPORT_MAX (include/linux/sched.h). */
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

/* Whether it was set, that is, whether there was anything to clear. */
static __always_inline bool clear_byte(struct slot *slot)
{
	__u64 site = READ_ONCE(slot->site);
	struct steal_time *record = record_at(site);

	if (!record || site & SITE_PARKED || !READ_ONCE(record->preempted))
		return false;
	WRITE_ONCE(record->preempted, 0);
	return true;
}

SEC("tracepoint")
int classic_switch(struct sched_switch *traced)
{
	struct slot *slot;

	slot = slot_of(traced->prev_pid);
	if (slot)
		leave(slot, traced->prev_state == 0 || traced->prev_state & STATE_PREEMPTED);
	slot = slot_of(traced->next_pid);
	if (slot && !overlooks(slot)) {
		clear_byte(slot);
		slot->running = 1;
		slot->ins++;
	}
	return 0;
}

/* On timer/hrtimer_expire_entry: see steal_heal() of the other program. */
SEC("tracepoint")
int classic_heal(void *traced)
{
	struct slot *slot = slot_of_current();
	bool was_set;

	if (!slot)
		return 0;
	was_set = clear_byte(slot);
	if (!slot->running) {
		slot->running = 1;
		slot->healed++;
	} else if (was_set) {
		slot->corrected++;
	}
	if (READ_ONCE(slot->kick) && slot->ins + slot->healed != READ_ONCE(slot->told))
		bpf_send_signal_thread(slot->kick);
	return 0;
}

/* Run by the loader, on a thread that asks for its own id as the tracepoint will name it. */
SEC("raw_tracepoint")
int classic_who(void *ctx)
{
	return bpf_get_current_pid_tgid();
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
