/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include "clock.h"
#include "pod.h"
#include "verdict.h"

/* What an entry of a pod's flow table stands for. */
enum flow_kind {
	FLOW_CONNECTION,
	/* A fragmented datagram whose first fragment passed; the ports hold its identification. */
	FLOW_FRAGMENTS_EGRESS,
	FLOW_FRAGMENTS_INGRESS,
};

enum flow_flag {
	FLOW_BY_HOST = 1 << 0, /* the node began it, and no rule was asked */
	FLOW_OWNED = 1 << 1,   /* its local address is the pod's, by the policy of generation */
	FLOW_AUDIT = 1 << 2,   /* fragments: rule is an audit rule */
};

/* Addresses in network byte order, IPv4 as ::ffff:a.b.c.d. */
struct flow_key {
	__u8 remote[16];
	__u8 local[16];
	__be16 remote_port; /* network byte order; of ICMP as icmp_ports() has it */
	__be16 local_port;  /* the same */
	__u8 protocol;      /* IPPROTO_* */
	__u8 kind;          /* enum flow_kind */
	__u8 pad[2];
};

/* Host byte order. Two CPUs may write at once, which at worst forgets one packet's change. */
struct flow {
	__u64 seen;       /* clock_now() of its last packet, to a second */
	__u64 ends;       /* clock_now() at which it ends whatever comes; 0: not yet known */
	__u32 generation; /* of the policy that let it pass */
	__u32 rule;       /* fragments: number of the rule that decided, plus 1; 0: none */
	__u16 port;       /* of the first packet as struct view has it, host byte order */
	__u8 initiator;   /* enum direction of its first packet */
	__u8 sent;        /* bits by enum direction: who has sent */
	__u8 fin;         /* bits by enum direction: who has sent a TCP FIN */
	__u8 flags;       /* enum flow_flag */
	__u8 pad[2];
};

/*
 * Per pod, so that no pod can evict another one's flows; the loader makes each as large as its
 * configuration says.
 */
struct flows {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct flow_key);
	__type(value, struct flow);
} flows SEC(".maps");

/* By slot. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, MAX_PODS);
	__type(key, __u32);
	__array(values, struct flows);
} pod_flows SEC(".maps");

/* Seconds without a packet after which a flow is over. */
#define FLOW_TCP_TIMEOUT       86400
#define FLOW_TCP_OPENING       30 /* until the other side has sent */
#define FLOW_UDP_TIMEOUT       60
#define FLOW_UDP_BOTH_TIMEOUT  180
#define FLOW_ICMP_TIMEOUT      30
#define FLOW_OTHER_TIMEOUT     600
#define FLOW_FRAGMENTS_TIMEOUT 30
/* Seconds that a TCP flow goes on after both sides have sent FIN: last acknowledgements. */
#define FLOW_TCP_CLOSING       10

#define FLOW_BOTH (1 << DIRECTION_EGRESS | 1 << DIRECTION_INGRESS)

/*
 * Whether a flow of protocol and kind is not over at now; the rest is as in struct flow. Global,
 * with numbers for arguments: the verifier walks it once, and not for each timeout.
 */
__attribute__((noinline)) int flow_live_until(__u32 protocol_kind, __u32 sent, __u64 seen,
					      __u64 ends, __u64 now)
{
	bool both = (sent & FLOW_BOTH) == FLOW_BOTH;
	__u64 timeout = FLOW_OTHER_TIMEOUT;

	if (ends && now >= ends)
		return false;
	if (protocol_kind >> 8 != FLOW_CONNECTION)
		timeout = FLOW_FRAGMENTS_TIMEOUT;
	else if (protocol_kind == IPPROTO_TCP)
		timeout = both ? FLOW_TCP_TIMEOUT : FLOW_TCP_OPENING;
	else if (protocol_kind == IPPROTO_UDP)
		timeout = both ? FLOW_UDP_BOTH_TIMEOUT : FLOW_UDP_TIMEOUT;
	else if (protocol_kind == IPPROTO_ICMP || protocol_kind == IPPROTO_ICMPV6)
		timeout = FLOW_ICMP_TIMEOUT;
	return now < seen + timeout * CLOCK_SECOND;
}

/* Whether the flow of key is not over at now. */
static __always_inline bool flow_live(const struct flow_key *key, const struct flow *flow,
				      __u64 now)
{
	return flow_live_until(key->protocol | key->kind << 8, flow->sent, flow->seen, flow->ends,
			       now);
}
