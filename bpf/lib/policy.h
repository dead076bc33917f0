/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include "packet.h"
#include "pod.h"
#include "verdict.h"
#include "view.h"

/*
 * A policy is a list of rules for each direction, as plugin/filter compiles it. Whether a rule
 * matches depends on two things alone: the remote address, and the protocol with its port. Each
 * is looked up for its class, the set of rules that it matches as a bit vector, and the first bit
 * that both have is the first rule that matches. A row is such a vector: a summary, of which bit
 * i tells whether word i is not 0, and then its words, bit 0 of word 0 the first rule. A row of one
 * bit is not there: POLICY_ONE and the number of the bit are in its place.
 */

/* In the place of a row's index, or of an address class: one rule, whose bit is the rest. */
#define POLICY_ONE (1U << 31)

#define POLICY_MAX_ROW       64 /* words of a row: 4096 rules */
#define POLICY_MAX_ADDRESSES 32 /* of a pod */

/* Places of a slot: one holds the policy in force while the other is filled. */
#define POLICY_PLACES 2

enum policy_flag {
	POLICY_STATEFUL = 1 << 0,
	POLICY_ALLOW_HOST = 1 << 1,
	POLICY_ANTI_SPOOF = 1 << 2,
};

enum policy_action {
	POLICY_ALLOW,
	POLICY_DENY,
	POLICY_AUDIT, /* as deny in what is told, as allow in what is done */
};

/* Fields of a rule's word. */
#define POLICY_RULE_ACTION   0xff
#define POLICY_RULE_HAS_PORT 0x100 /* has ports or an ICMP type, which later fragments lack */
#define POLICY_RULE_NUMBER   32    /* shift: its number in the user's list */

/* Where the parts of a direction's rules begin in the policy's words; host byte order. */
struct policy_direction {
	__u32 protocols;    /* two words for each IP protocol: see policy_port_row() */
	__u32 address_rows; /* the row of address class 0 */
	__u32 rules;        /* a word for each rule */
	__u32 row_words;    /* words of a row with its summary */
	__u32 action;       /* enum policy_action: the default */
};

/* What is known of a pod's policy without its words; host byte order unless said otherwise. */
struct policy {
	__u32 generation; /* differs from that of the policy before; 0: there is none */
	__u32 flags;      /* enum policy_flag */
	__u32 addresses;  /* where the pod's addresses begin in the words, two words each, network
			     byte order */
	__u32 addresses_len;
	__u32 rules_len; /* in both directions: records that each CPU has in the counters */
	__u8 mac[6];     /* of the pod end */
	__u8 pad[2];
	struct policy_direction direction[DIRECTIONS];
};

/* By slot * POLICY_PLACES + place. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_PODS *POLICY_PLACES);
	__type(key, __u32);
	__type(value, struct policy);
} policies SEC(".maps");

/* Per policy: its words. */
struct policy_words {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_INNER_MAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} policy_words SEC(".maps");

struct policy_prefix {
	__u32 prefixlen;   /* bits of what follows, host byte order */
	__u8 direction[4]; /* enum direction in the first byte */
	__u8 address[16];  /* IPv4 as ::ffff:a.b.c.d */
};

/* Per policy: prefix of the remote address to address class. */
struct policy_prefixes {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct policy_prefix);
	__type(value, __u32);
} policy_prefixes SEC(".maps");

struct rule_counter {
	__u64 packets;
	__u64 bytes;
	__u64 last; /* nanoseconds of clock_now() when it last matched */
};

/*
 * Per policy: by CPU * rules_len + the rule's number. An array that is per-CPU in itself could
 * not be of another size for each policy (array_map_meta_equal() in kernel/bpf/arraymap.c).
 */
struct rule_counters {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_INNER_MAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct rule_counter);
} rule_counters SEC(".maps");

/* All of these by slot * POLICY_PLACES + place. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, MAX_PODS *POLICY_PLACES);
	__type(key, __u32);
	__array(values, struct policy_words);
} pod_policy_words SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, MAX_PODS *POLICY_PLACES);
	__type(key, __u32);
	__array(values, struct policy_prefixes);
} pod_policy_prefixes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, MAX_PODS *POLICY_PLACES);
	__type(key, __u32);
	__array(values, struct rule_counters);
} pod_rule_counters SEC(".maps");

/* Returns a word of a policy, 0 if there is none. */
static __always_inline __u64 policy_word(void *words, __u32 index)
{
	__u64 *word = bpf_map_lookup_elem(words, &index);

	return word ? *word : 0;
}

/*
 * Returns the index of the row of rules that match a protocol and port, host byte order. A
 * protocol's two words are: index of its first interval | their number << 32; index of the row
 * for packets whose port is not known. An interval is: its first port | index of its row << 32;
 * it reaches to the next one.
 */
static __always_inline __u32 policy_port_row(void *words, const struct policy_direction *rules,
					     __u8 protocol, __u16 port, bool portless)
{
	__u32 at = rules->protocols + protocol * 2;
	__u64 head;
	__u32 low = 0, high;

	if (portless)
		return policy_word(words, at + 1);
	head = policy_word(words, at);
	high = head >> 32;
	/* 2^17 intervals are more than there are ports */
	for (int i = 0; i < 17; i++) {
		__u32 middle = (low + high) / 2, first, below;

		if (low + 1 >= high)
			break;
		/* all ones if the interval begins at port or before; a branch would be two paths */
		first = policy_word(words, (__u32)head + middle) & 0xffff;
		below = -((first - port - 1) >> 31);
		low = (middle & below) | (low & ~below);
		high = (middle & ~below) | (high & below);
	}
	return policy_word(words, (__u32)head + low) >> 32;
}

/*
 * Returns the place of the lowest bit that is set; bits must not be 0. The bits below it are
 * counted pair by pair (Hacker's Delight, 5-1): clang 16 makes of __builtin_ctzll() a table, at
 * which its BPF backend crashes, and branches would be paths to the verifier.
 */
static __always_inline __u32 policy_first_bit(__u64 bits)
{
	__u64 below = (bits & -bits) - 1;

	/* or clang sees what this is */
	barrier_var(below);
	below -= below >> 1 & 0x5555555555555555ULL;
	below = (below & 0x3333333333333333ULL) + (below >> 2 & 0x3333333333333333ULL);
	below = (below + (below >> 4)) & 0x0f0f0f0f0f0f0f0fULL;
	return below * 0x0101010101010101ULL >> 56;
}

/* In the place of a rule's word: no rule matches, and the default decides. */
#define POLICY_NO_RULE (~0ULL)
/* In the place of a rule's word: the policy is not whole, and nothing passes. */
#define POLICY_BROKEN  (POLICY_NO_RULE - 1)

/*
 * Returns the word of the rule that one stands for, a row of one bit, if row has it too, or
 * POLICY_NO_RULE.
 */
static __always_inline __u64 policy_one(void *words, const struct policy_direction *rules,
					__u32 one, __u32 row)
{
	__u32 rule = one & ~POLICY_ONE;

	if (row & POLICY_ONE ? row != one
			     : !(policy_word(words, row + 1 + rule / 64) >> rule % 64 & 1))
		return POLICY_NO_RULE;
	return policy_word(words, rules->rules + rule);
}

/*
 * Returns the word of the first rule that matches the packet in the CPU's view, by the policy at
 * place, or POLICY_NO_RULE or POLICY_BROKEN. direction is that of the flow's first packet, and port
 * its destination port (struct view); portless says that it is not known. Global, with numbers for
 * arguments: the verifier walks it once.
 */
__attribute__((noinline)) __u64 policy_match(__u32 place, __u32 direction, __u32 port,
					     __u32 portless)
{
	struct policy_prefix prefix = {.prefixlen = 32 + 128};
	const struct policy_direction *rules;
	__u32 port_row, address_row;
	void *words, *prefixes;
	struct policy *policy;
	struct view *view;
	__u64 candidates;
	__u32 *class;

	view = view_scratch();
	policy = bpf_map_lookup_elem(&policies, &place);
	words = bpf_map_lookup_elem(&pod_policy_words, &place);
	prefixes = bpf_map_lookup_elem(&pod_policy_prefixes, &place);
	if (!view || !policy || !words || !prefixes)
		return POLICY_BROKEN;
	rules = &policy->direction[direction & 1];
	prefix.direction[0] = direction & 1;
	__builtin_memcpy(prefix.address, view->key.remote, sizeof(prefix.address));
	class = bpf_map_lookup_elem(prefixes, &prefix);
	if (!class)
		return POLICY_BROKEN;
	port_row = policy_port_row(words, rules, view->key.protocol, port, portless);
	if (*class & POLICY_ONE)
		return policy_one(words, rules, *class, port_row);
	address_row = rules->address_rows + *class * rules->row_words;
	if (port_row & POLICY_ONE)
		return policy_one(words, rules, port_row, address_row);
	candidates = policy_word(words, address_row) & policy_word(words, port_row);
	for (int i = 0; i < POLICY_MAX_ROW; i++) {
		__u32 word;
		__u64 both;

		if (!candidates)
			break;
		word = policy_first_bit(candidates);
		both = policy_word(words, address_row + 1 + word) &
		       policy_word(words, port_row + 1 + word);
		if (both)
			return policy_word(words,
					   rules->rules + word * 64 + policy_first_bit(both));
		candidates &= candidates - 1;
	}
	return POLICY_NO_RULE;
}

/* Counts a packet that a rule decided. */
static __always_inline void policy_count(const struct policy *policy, __u32 place, __u32 rule,
					 __u64 now, const struct packet *pkt)
{
	__u32 index = bpf_get_smp_processor_id() * policy->rules_len + rule;
	struct rule_counter *counter;
	void *counters;

	counters = bpf_map_lookup_elem(&pod_rule_counters, &place);
	if (!counters)
		return;
	counter = bpf_map_lookup_elem(counters, &index);
	if (!counter)
		return;
	counter->packets += pkt->packets;
	counter->bytes += pkt->len;
	counter->last = now;
}

/*
 * Whether the pod whose policy is at place owns what the packet in the CPU's view claims, or, if
 * claim is 0, its local address. Global for the same reason.
 */
__attribute__((noinline)) int policy_owns(__u32 place, __u32 claim)
{
	struct policy *policy;
	struct view *view;
	__u64 high, low;
	void *words;

	view = view_scratch();
	policy = bpf_map_lookup_elem(&policies, &place);
	words = bpf_map_lookup_elem(&pod_policy_words, &place);
	if (!view || !policy || !words)
		return false;
	if (claim) {
		__builtin_memcpy(&high, view->claim, sizeof(high));
		__builtin_memcpy(&low, view->claim + sizeof(high), sizeof(low));
	} else {
		__builtin_memcpy(&high, view->key.local, sizeof(high));
		__builtin_memcpy(&low, view->key.local + sizeof(high), sizeof(low));
	}
	for (__u32 i = 0; i < POLICY_MAX_ADDRESSES; i++) {
		if (i >= policy->addresses_len)
			break;
		if (policy_word(words, policy->addresses + 2 * i) == high &&
		    policy_word(words, policy->addresses + 2 * i + 1) == low)
			return true;
	}
	return false;
}
