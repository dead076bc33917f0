/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include <stdbool.h>

#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include "clock.h"

/*
 * What is known of the flows between pods of the node: whether the stack leaves their packets as
 * they are. Every flow begins by the stack, which may translate its addresses or drop it; what left
 * one pod and came to the other is noted at either end, under the addresses that it had there. A
 * flow that was seen whole at both ends is not translated.
 */

/* A flow; low is the pod with the lower address. Addresses in network byte order. */
struct direct_key {
	__u64 network; /* as in struct endpoint */
	__u8 low[16];  /* IPv4 as ::ffff:a.b.c.d */
	__u8 high[16];
	__be16 low_port; /* network byte order, as in struct flow_key */
	__be16 high_port;
	__u8 protocol; /* IPPROTO_* */
	__u8 pad[3];
};

/* The ends of a flow. */
enum direct_end {
	DIRECT_LOW,
	DIRECT_HIGH,
	DIRECT_ENDS,
};

/* By the end that sent it, what the stack was given and what came of it. Host byte order. */
struct direct_flow {
	__u64 seen;                   /* clock_now() of its last packet, to a second */
	__u64 owner[DIRECT_ENDS];     /* the attachments, as in struct endpoint */
	__u32 sent[DIRECT_ENDS];      /* packets that left that end for the stack */
	__u32 delivered[DIRECT_ENDS]; /* packets of that end that the stack brought to the other */
	__be32 syn_sent;              /* sequence number of the SYN that opened it, TCP only */
	__be32 syn_delivered;         /* and of the one that the stack brought to the other end */
	__be32 answer_sent;           /* the same of the SYN+ACK */
	__be32 answer_delivered;
	__u8 opener;  /* enum direct_end that sent the SYN */
	__u8 tainted; /* not TCP: something else comes under the same addresses */
	__u8 pad[6];
};

/* The loader makes it as large as its configuration says. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct direct_key);
	__type(value, struct direct_flow);
} direct_flows SEC(".maps");

/*
 * Seconds without a packet after which what is known of a flow other than TCP's is forgotten. The
 * stack forgets it earlier (nf_conntrack_udp_timeout_stream), and may decide anew.
 */
#define DIRECT_TIMEOUT 120

/*
 * Whether a flow is known to be left as it is by the stack. Of TCP: the SYN that one end sent is
 * the one that came to the other, by its sequence number, which no NAT changes; and so is the
 * answer, which a proxy in the stack (SYNPROXY) would give with a number of its own. A connection that began before is not known. Else: at both ends as many
 * packets were seen each way, and none came that was not sent so.
 */
static __always_inline bool direct_known(const struct direct_flow *flow, __u8 protocol)
{
	if (protocol == IPPROTO_TCP) {
		__u32 answerer = !flow->opener;

		return flow->syn_sent == flow->syn_delivered && flow->delivered[flow->opener & 1] &&
		       flow->answer_sent == flow->answer_delivered && flow->sent[answerer] &&
		       flow->delivered[answerer];
	}
	return !flow->tainted && flow->delivered[DIRECT_LOW] && flow->delivered[DIRECT_HIGH] &&
	       flow->sent[DIRECT_LOW] == flow->delivered[DIRECT_LOW] &&
	       flow->sent[DIRECT_HIGH] == flow->delivered[DIRECT_HIGH];
}

/* Whether what is known of a flow still holds at now. A TCP connection ends with the next SYN. */
static __always_inline bool direct_live(const struct direct_flow *flow, __u8 protocol, __u64 now)
{
	/* signed: another CPU may have seen a packet since now */
	return protocol == IPPROTO_TCP ||
	       (__s64)(now - flow->seen) < (__s64)(DIRECT_TIMEOUT * CLOCK_SECOND);
}
