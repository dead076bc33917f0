/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include "pod.h"
#include "verdict.h"

/*
 * User programs, which run on what a pod sends. Each is a whole program of its own, entered in
 * pod_programs and reached by a tail call from a function of ours: such a call replaces only that
 * function's frame, so what the program returns comes back here. x86-64 has that from kernel 5.10
 * on (e411901c0b77, "bpf: allow for tailcalls in BPF subprograms for x64 JIT"), arm64 from 6.0 on.
 */

/* One run in so many is timed. A power of two. */
#define PROGRAM_TIMED_EVERY 64

/*
 * Where pod_programs has our own policy, xdp_judge: it is called as the others are, because what
 * calls so may have 256 bytes on the stack (check_max_stack_depth() in kernel/bpf/verifier.c), and
 * it has more. One without and one with redirect.
 */
enum program_entry {
	PROGRAM_JUDGE = MAX_PODS * MAX_POD_PROGRAMS,
	PROGRAM_JUDGE_REDIRECT,
	PROGRAM_ENTRIES,
};

/* What xdp_egress_programs() and xdp_judge() tell each other of the packet under way. */
struct walk {
	__u32 decided;   /* enum verdict of the programs before our policy */
	__u32 undecided; /* not 0: the policy passes it, and it is not counted by verdict yet */
	__u32 len;       /* bytes, with undecided */
	__u32 judged;    /* not 0: the policy was called */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct walk);
} walks SEC(".maps");

/* Returns the walk of the packet that this CPU is at. */
static __always_inline struct walk *walk_scratch(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&walks, &zero);
}

/* When a program runs. */
enum program_order {
	PROGRAM_BEFORE, /* before our policy */
	PROGRAM_AFTER,  /* on what our policy lets pass */
};

/* What became of a program's runs. Host byte order. */
struct program_counters {
	__u64 runs;
	__u64 verdicts[VERDICTS]; /* runs, by the verdict that they ended with */
	__u64 timed;              /* runs that were timed */
	__u64 nanoseconds;        /* that these took together */
};

/*
 * What the control path notes of one of a pod's programs, by its place. No program reads it. Strings
 * end with a NUL, host byte order.
 */
struct program_meta {
	__u32 id;    /* of the loaded program; 0: no program, at this place and all behind it */
	__u32 order; /* enum program_order */
	__u8 shared; /* not 0: loaded once for the node */
	__u8 tc;     /* not 0: a tc program with a link or filter of its own */
	__u8 optional;
	__u8 pad[5];
	__u8 digest[32]; /* SHA-256 of the object file */
	__u8 name[64];
	__u8 function[128]; /* in the object */
	__u8 wanted[128];   /* program in the configuration */
	__u8 object[512];   /* path of the file */
};

/* Of one pod. Pinned for the pod. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_POD_PROGRAMS);
	__type(key, __u32);
	__type(value, struct program_meta);
} programs_meta SEC(".maps");

/* Of one pod, by the place of a program among its programs. Pinned for the pod. */
struct program_counters_map {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_POD_PROGRAMS);
	__type(key, __u32);
	__type(value, struct program_counters);
} program_counters_map SEC(".maps");

/* The counters of all pods, by slot. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, MAX_PODS);
	__type(key, __u32);
	__array(values, struct program_counters_map);
} pod_program_counters SEC(".maps");

/*
 * All pods' programs, by slot * MAX_POD_PROGRAMS + place. The kernel binds such a map to programs
 * that are multi-buffer or not (__bpf_prog_map_compatible() in kernel/bpf/core.c), so a node has two.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, PROGRAM_ENTRIES);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} pod_programs SEC(".maps");

/*
 * Runs the program at index and returns what it returns, XDP_ABORTED if there is none. Global: of a
 * static function kernels before 6.19 believe that it returns what it does where the call fails, and
 * remove all that the user programs' verdicts lead to (e40030a46acf, "bpf: properly verify tail call
 * behavior").
 */
__attribute__((noinline)) int program_run(struct xdp_md *ctx, __u32 index)
{
	int verdict = XDP_ABORTED;

	bpf_tail_call(ctx, &pod_programs, index);
	/* or clang gives its callers this constant, not knowing that the call may return for it */
	barrier_var(verdict);
	return verdict;
}

/* Returns the counters of a program, NULL if there are none. */
static __always_inline struct program_counters *program_counters_of(__u32 number, __u32 place)
{
	void *map = bpf_map_lookup_elem(&pod_program_counters, &number);

	return map ? bpf_map_lookup_elem(map, &place) : NULL;
}

/*
 * Runs those programs of the pod in slot number that have an order, one after the other as long as
 * they let the packet pass, and counts each. Returns the enum verdict of the last; a value that is
 * none, and a program that could not be called, is VERDICT_ABORTED. Whoever calls it reads ctx->data
 * anew: the programs may have changed the packet, which kernels before 6.13 do not know
 * (CVE-2024-58237).
 */
__attribute__((noinline)) int programs_walk(struct xdp_md *ctx, __u32 number, __u32 order)
{
	const struct slot *slot = bpf_map_lookup_elem(&slots, &number);
	__u32 place, end;

	if (!slot || !ctx)
		return VERDICT_ABORTED;
	place = 0;
	end = slot_programs(slot, SLOT_BEFORE);
	if (order == PROGRAM_AFTER) {
		place = end;
		end += slot_programs(slot, SLOT_AFTER);
	}
	for (int i = 0; i < MAX_POD_PROGRAMS; i++, place++) {
		struct program_counters *counters;
		__u64 began = 0;
		__u32 verdict;

		if (place >= end)
			return VERDICT_PASS;
		counters = program_counters_of(number, place);
		if (counters && counters->runs++ % PROGRAM_TIMED_EVERY == 0)
			began = bpf_ktime_get_ns();
		verdict = program_run(ctx, number * MAX_POD_PROGRAMS + place);
		if (verdict >= VERDICTS)
			verdict = VERDICT_ABORTED;
		counters = program_counters_of(number, place);
		if (counters) {
			if (began) {
				counters->timed++;
				counters->nanoseconds += bpf_ktime_get_ns() - began;
			}
			counters->verdicts[verdict]++;
		}
		if (verdict != VERDICT_PASS)
			return verdict;
	}
	return VERDICT_PASS;
}
