/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include <stdbool.h>

#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

/* How the egress of a pod is hooked. */
enum pod_mode {
	POD_MODE_GENERIC = 1,
	POD_MODE_NATIVE = 2,
	POD_MODE_TCX = 3,
};

enum endpoint_flag {
	/* its pod end takes XDP frames: see veth_xdp_xmit() in drivers/net/veth.c */
	ENDPOINT_TAKES_FRAMES = 1 << 0,
};

/* A pod that packets may be handed to directly. Host byte order. */
struct endpoint {
	__u64 owner;   /* pod_meta.owner of its attachment */
	__u64 network; /* only pods of one number know each other: see struct endpoint_key */
	__u32 ifindex; /* of the host end */
	__u32 slot;    /* its number */
	__u32 mtu;     /* of the pod end: bytes of an IP packet */
	__u32 segment; /* shape: ifindex of the bridge that the host end is a port of, 0: it is routed */
	__u8 mac[6];        /* of the pod end */
	__u8 router_mac[6]; /* by which the node, as a router, is spoken to, and speaks */
	__u8 mode;          /* enum pod_mode */
	__u8 flags;         /* enum endpoint_flag */
	__u8 pad[2];
};

struct endpoint_key {
	__u64 network;    /* FNV-1a of the network's name; 0 for all that share what they know */
	__u8 address[16]; /* network byte order, IPv4 as ::ffff:a.b.c.d */
};

/* The pods of the node by their addresses. The loader makes it as large as its configuration says. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct endpoint_key);
	__type(value, struct endpoint);
} endpoints SEC(".maps");

/* Whether packets of one pod can be handed to another directly, by their modes. */
static __always_inline bool endpoint_reaches(const struct endpoint *from, const struct endpoint *to)
{
	return from->mode != POD_MODE_NATIVE || (to->flags & ENDPOINT_TAKES_FRAMES);
}

/*
 * Whether two pods may hand packets of protocol to each other directly. Both ways or neither: of
 * a flow that it sees half of, the node's connection tracking takes the half for INVALID. So TCP
 * does not go directly where a pod is hooked by generic XDP, which must leave GSO packets to the
 * stack: generic XDP drops what is longer than the target's MTU (__bpf_tx_skb() checks it in
 * xdp_ok_fwd_dev(), include/linux/filter.h).
 */
static __always_inline bool endpoint_pairs(const struct endpoint *one, const struct endpoint *other,
					   __u8 protocol)
{
	if (protocol == IPPROTO_TCP &&
	    (one->mode == POD_MODE_GENERIC || other->mode == POD_MODE_GENERIC))
		return false;
	return endpoint_reaches(one, other) && endpoint_reaches(other, one);
}
