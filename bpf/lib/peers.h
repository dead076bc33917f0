/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include <linux/bpf.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/types.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "packet.h"
#include "pod.h"
#include "stats.h"
#include "verdict.h"

/* A remote address, network byte order; IPv4 as ::ffff:a.b.c.d (RFC 4291, 2.5.5.2). */
struct peer {
	__u8 address[16];
};

/* What the pod and one peer sent each other. */
struct peer_counters {
	struct datarec direction[DIRECTIONS];
};

/*
 * Per pod, if its configuration asks for it. The size here is that of the template; the loader
 * makes each pod's map as large as its configuration says.
 */
struct peers {
	__uint(type, BPF_MAP_TYPE_LRU_PERCPU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct peer);
	__type(value, struct peer_counters);
} peers SEC(".maps");

/* By slot: the peers map of each pod that has one. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, MAX_PODS);
	__type(key, __u32);
	__array(values, struct peers);
} pod_peers SEC(".maps");

/*
 * Reads the peer's address, the destination of what the pod sends and the source of what it gets;
 * false for what is not IP.
 */
static __always_inline bool peer_address(struct peer *peer, enum direction direction,
					 const struct packet *pkt)
{
	if (pkt->family == FAMILY_IPV4) {
		struct iphdr *ip = packet_header(pkt, pkt->l3_off, sizeof(*ip));
		__be32 *words = (__be32 *)peer->address;

		if (!ip)
			return false;
		words[0] = 0;
		words[1] = 0;
		words[2] = bpf_htonl(0xffff);
		words[3] = direction == DIRECTION_EGRESS ? ip->daddr : ip->saddr;
		return true;
	}
	if (pkt->family == FAMILY_IPV6) {
		struct ipv6hdr *ip6 = packet_header(pkt, pkt->l3_off, sizeof(*ip6));

		if (!ip6)
			return false;
		if (direction == DIRECTION_EGRESS)
			__builtin_memcpy(peer, &ip6->daddr, sizeof(*peer));
		else
			__builtin_memcpy(peer, &ip6->saddr, sizeof(*peer));
		return true;
	}
	return false;
}

/*
 * Enters a peer that is not in map yet; fails only when another CPU was first. Not inline, for the
 * sake of the caller's stack: see programs_run().
 */
static __attribute__((noinline)) int peers_begin(void *map, const struct peer *peer)
{
	struct peer_counters zero = {};

	return bpf_map_update_elem(map, peer, &zero, BPF_NOEXIST);
}

/* Counts a packet of the pod in slot by the address of its peer. */
static __always_inline void peers_count(__u32 slot, enum direction direction,
					const struct packet *pkt)
{
	struct peer peer __attribute__((aligned(8)));
	struct peer_counters *counters;
	void *map;

	map = bpf_map_lookup_elem(&pod_peers, &slot);
	if (!map || !peer_address(&peer, direction, pkt))
		return;
	counters = bpf_map_lookup_elem(map, &peer);
	if (!counters) {
		peers_begin(map, &peer);
		counters = bpf_map_lookup_elem(map, &peer);
		if (!counters)
			return;
	}
	datarec_add(&counters->direction[direction], pkt);
}
