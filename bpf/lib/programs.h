/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include "pod.h"
#include "stats.h"
#include "verdict.h"

/*
 * Programs of the user, which run on what a pod sends before and after our own policy. Each is a
 * whole XDP program, loaded by itself. It is called by a tail call out of a subprogram: that takes
 * the place of the subprogram's frame only, and what it returns comes back here (kernel 5.10 on
 * x86-64, 6.0 on arm64; emit_bpf_tail_call_direct() and its kin in the JITs). So the program that is
 * attached stays one for all pods, which a program composed of other programs' instructions could
 * not be: past 48 attached programs each packet costs more (BPF_DISPATCHER_MAX in linux/bpf.h).
 */

/*
 * slot.flags also say how many programs there are: those before the policy, and all; the first of
 * them are the ones before.
 */
#define SLOT_PROGRAMS_BEFORE_SHIFT 8
#define SLOT_PROGRAMS_SHIFT        12
#define SLOT_PROGRAMS_MASK         0xf

/* What no XDP program returns. */
#define PROGRAM_ABSENT -1

/*
 * The programs of all pods, by slot * MAX_POD_PROGRAMS + number. As the kernel takes programs with and
 * without multi-buffer support for different (bpf_prog_map_compatible() in kernel/bpf/core.c), the
 * node has one for each.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, MAX_PODS *MAX_POD_PROGRAMS);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} pod_programs SEC(".maps");

/* What became of the frames that came to each program: number * VERDICTS + verdict. Pinned for the pod. */
struct program_stats {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_POD_PROGRAMS *VERDICTS);
	__type(key, __u32);
	__type(value, struct datarec);
} program_stats_map SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, MAX_PODS);
	__type(key, __u32);
	__array(values, struct program_stats);
} pod_program_stats SEC(".maps");

/* Programs before the policy, by the flags of a slot. */
static __always_inline __u32 programs_before(__u32 slot_flags)
{
	return slot_flags >> SLOT_PROGRAMS_BEFORE_SHIFT & SLOT_PROGRAMS_MASK;
}

/* All programs, by the flags of a slot. */
static __always_inline __u32 programs_all(__u32 slot_flags)
{
	return slot_flags >> SLOT_PROGRAMS_SHIFT & SLOT_PROGRAMS_MASK;
}

/*
 * Runs the program at index of pod_programs. Returns what it returns, an XDP action if it is right,
 * or PROGRAM_ABSENT. The frame may be another one afterwards, which kernels before 6.13 do not know
 * (CVE-2024-58237): no pointer into it may be kept across.
 */
static __attribute__((noinline)) int program_call(struct xdp_md *ctx, __u32 index)
{
	int action = PROGRAM_ABSENT;

	bpf_tail_call(ctx, &pod_programs, index);
	/* or the compiler knows what is returned */
	barrier_var(action);
	return action;
}

/* Counts a frame of len bytes that came to a program of the pod in slot; key as in program_stats_map. */
static __always_inline void program_count(__u32 slot, __u32 key, __u32 len)
{
	struct datarec *rec;
	void *counters;

	counters = bpf_map_lookup_elem(&pod_program_stats, &slot);
	if (!counters)
		return;
	rec = bpf_map_lookup_elem(counters, &key);
	if (rec) {
		rec->packets++;
		rec->bytes += len;
	}
}

enum programs_order {
	PROGRAMS_BEFORE,
	PROGRAMS_AFTER,
};

/*
 * Runs the programs of one order of the pod whose host end the frame came in by, until one does not
 * pass the frame. Returns what the last one said, VERDICT_PASS if there is none. One that is not there
 * or says what is no action drops, as the kernel has it (bpf_warn_invalid_xdp_action()).
 *
 * The caller's stack counts as that of program_call()'s, of which there may be less than 256 bytes
 * (check_max_stack_depth() in kernel/bpf/verifier.c), rounded up to 32 on 5.10, also where the call is
 * dead code: so all that can be found again is.
 */
static __always_inline enum verdict programs_run(struct xdp_md *ctx, enum programs_order order)
{
	__u32 slot, number, end;
	const struct slot *pod;

	pod = pod_slot(ctx->ingress_ifindex, &slot);
	if (!pod)
		return VERDICT_PASS;
	number = order == PROGRAMS_BEFORE ? 0 : programs_before(pod->flags);
	end = order == PROGRAMS_BEFORE ? programs_before(pod->flags) : programs_all(pod->flags);
	for (int i = 0; i < MAX_POD_PROGRAMS; i++, number++) {
		__u32 action, len;

		if (number >= end)
			break;
		len = config_xdp_frags ? bpf_xdp_get_buff_len(ctx) : ctx->data_end - ctx->data;
		action = program_call(ctx, slot * MAX_POD_PROGRAMS + number);
		if (action >= VERDICTS)
			action = VERDICT_ABORTED;
		program_count(slot, number * VERDICTS + action, len);
		if (action != VERDICT_PASS)
			return (enum verdict)action;
	}
	return VERDICT_PASS;
}
