/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include "endpoint.h"

/* Attachments that a node can hold; a power of two. */
#define MAX_PODS 4096

/* User programs that an attachment can have. */
enum pod_limit {
	MAX_POD_PROGRAMS = 8,
};

enum slot_flag {
	SLOT_PEERS = 1 << 0,    /* the pod has a map of per-peer counters */
	SLOT_FILTER = 1 << 1,   /* the pod has a policy; without it nothing passes */
	SLOT_POLICY = 1 << 2,   /* which of the slot's two places holds the policy in force */
	SLOT_REDIRECT = 1 << 3, /* the pod's packets may go directly, and others' to it */
};

/* Numbers in the flags of a slot, which is one cache line as it is: from which bit on they stand. */
enum slot_number {
	SLOT_BEFORE = 16, /* user programs that run before our policy */
	SLOT_AFTER = 20,  /* and on what it lets pass */
	SLOT_BITS = 4,    /* of each; at most MAX_POD_PROGRAMS */
};

/*
 * One attachment, as the programs know it. Its number indexes every map of per-pod maps. An array
 * found by the low bits of the ifindex costs 3 ns where a hash costs 42; interface indexes are
 * given out in sequence, so two pods seldom want the same slot.
 */
struct slot {
	__u32 ifindex;        /* of the host end, host byte order; 0: the slot is free */
	__u32 flags;          /* enum slot_flag and enum slot_number, host byte order */
	__u64 owner;          /* pod_meta.owner of the attachment that has the slot */
	struct endpoint self; /* with SLOT_REDIRECT: the pod, as others find it */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_PODS);
	__type(key, __u32);
	__type(value, struct slot);
} slots SEC(".maps");

/* Host end's ifindex to slot, for those whose own slot was taken when they came. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_PODS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, __u32);
} slot_overflow SEC(".maps");

/* Returns one of the numbers in the flags of a slot. */
static __always_inline __u32 slot_programs(const struct slot *slot, enum slot_number which)
{
	return slot->flags >> which & ((1 << SLOT_BITS) - 1);
}

/* Sets *number to the slot of the attachment whose host end is ifindex; NULL if there is none. */
static __always_inline struct slot *pod_slot(__u32 ifindex, __u32 *number)
{
	struct slot *slot;
	__u32 *other;

	*number = ifindex & (MAX_PODS - 1);
	slot = bpf_map_lookup_elem(&slots, number);
	if (slot && slot->ifindex == ifindex)
		return slot;
	other = bpf_map_lookup_elem(&slot_overflow, &ifindex);
	if (!other)
		return NULL;
	*number = *other;
	slot = bpf_map_lookup_elem(&slots, number);
	return slot && slot->ifindex == ifindex ? slot : NULL;
}
