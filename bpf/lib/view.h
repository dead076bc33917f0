/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/types.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "direct.h"
#include "drop.h"
#include "endpoint.h"
#include "flow.h"
#include "icmp.h"
#include "packet.h"
#include "verdict.h"

enum view_flag {
	VIEW_BROKEN = 1 << 0, /* truncated, malformed or unreadable */
	VIEW_IP = 1 << 1,     /* IPv4 or IPv6 */
	VIEW_ARP = 1 << 2,
	VIEW_LATER_FRAGMENT = 1 << 3, /* without ports */
	VIEW_FIRST_FRAGMENT = 1 << 4,
	VIEW_FROM_HOST = 1 << 5, /* made on the node itself */
	VIEW_NEIGHBOUR = 1 << 6, /* neighbour discovery or multicast listeners */
	VIEW_CLAIM = 1 << 7,     /* claim holds an address that the packet claims */
	VIEW_FALSE = 1 << 8,     /* claims what no pod may */
	VIEW_OTHER_MAC = 1 << 9, /* claims a MAC that is not the source of its Ethernet header */
	VIEW_QUOTE = 1 << 10,    /* an ICMP error; quote holds the flow it is about */
	VIEW_NO_FLOW = 1 << 11,  /* ICMP about another packet: belongs to no flow of its own */
	VIEW_PLAIN = 1 << 12,    /* TCP, UDP or echo, whole, untagged, without options */
};

/*
 * All that the filter judges a packet by, read from it once. It lies in a map, not on the stack:
 * what the verifier reads from there is any value to it, so that all ways by which a packet may
 * have been read are one from then on.
 */
struct view {
	struct flow_key key;
	struct flow_key quote;
	struct flow_key datagram; /* of which the packet is a fragment: see filter_datagram() */
	__u8 claim[16];           /* network byte order, IPv4 as ::ffff:a.b.c.d */
	__u8 source_mac[6];
	__u8 destination_mac[6];
	__be32 sequence;   /* of TCP, network byte order */
	__u16 ethertype;   /* host byte order */
	__u32 flags;       /* enum view_flag */
	__u32 fragment_id; /* as it stands in the packet */
	__u32 len;         /* as struct packet */
	__u32 packets;     /* as struct packet */
	__u32 datagram_len; /* bytes of the IP packet, of the longest of those that a GSO packet holds */
	__u16 port;         /* destination port, or ICMP type << 8 | code; host byte order */
	__u8 tcp_flags;     /* byte 13 of the TCP header */
	__u8 icmp_type;     /* of ICMP in IPv4 and ICMPv6 in IPv6 */
	__u8 mac_option;    /* neighbour discovery: type of the option that claims a MAC, or 0 */
	__u8 hops;          /* TTL or hop limit */
	__u16 options_off;  /* neighbour discovery: where its options begin in the frame, or 0 */
	__u32 target_flags; /* enum slot_flag, of the pod that the packet goes to directly */
	__u32 routed;       /* not 0: by the node as a router */
	/* From here on nothing is set before the view is filled: each is written before it is read. */
	__u8 parsed[PACKET_REST]; /* the packet that was parsed, without its pointers */
	struct decision decision; /* the filter's, here for the same reason */
	struct direct_key direct; /* the redirect's, the same; its padding is never written */
	struct direct_flow
		begin;          /* a new entry in direct_flows: older kernels have no stack left */
	struct endpoint target; /* the pod that the packet goes to directly */
	struct flow_key sent;   /* what a pod sent before, but for TCP: see redirect_is_other() */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct view);
} views SEC(".maps");

/* The CPU's own view; it is filled and used with bottom halves off. NULL never comes. */
static __always_inline struct view *view_scratch(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&views, &zero);
}

/* Bytes of an SCTP common header (RFC 9260, 3.1). */
#define SCTP_HEADER_LEN 12

/* Whether a protocol has ports, or a type, in the first 8 bytes behind an IP header of family. */
static __always_inline bool view_has_ports(__u8 family, __u8 protocol)
{
	switch (protocol) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
		return true;
	case IPPROTO_ICMP:
		return family == FAMILY_IPV4;
	case IPPROTO_ICMPV6:
		return family == FAMILY_IPV6;
	}
	return false;
}

/*
 * Reads the addresses of the IP header of family at off into the key, the source as local if the
 * packet is one that the pod sent. false: they cannot be read.
 */
static __always_inline bool view_addresses(const struct packet *pkt, __u8 family, __u32 off,
					   bool from_pod, struct flow_key *key)
{
	__u8 *source = from_pod ? key->local : key->remote;
	__u8 *destination = from_pod ? key->remote : key->local;

	if (family == FAMILY_IPV4) {
		struct iphdr *ip = packet_header(pkt, off, sizeof(*ip));

		if (!ip)
			return false;
		key->local[10] = key->local[11] = key->remote[10] = key->remote[11] = 0xff;
		__builtin_memcpy(source + 12, &ip->saddr, 4);
		__builtin_memcpy(destination + 12, &ip->daddr, 4);
	} else {
		struct ipv6hdr *ip6 = packet_header(pkt, off, sizeof(*ip6));

		if (!ip6)
			return false;
		__builtin_memcpy(source, &ip6->saddr, 16);
		__builtin_memcpy(destination, &ip6->daddr, 16);
	}
	return true;
}

/*
 * Reads the ports of the L4 header at off, 8 bytes of it, or what stands for them, into the key.
 * Returns the header, NULL if it cannot be read.
 */
static __always_inline __u8 *view_ports(const struct packet *pkt, __u32 off, bool from_pod,
					struct flow_key *key)
{
	__u8 *l4 = packet_header(pkt, off, 8);
	__be16 source = 0, destination = 0;

	if (!l4)
		return NULL;
	if (icmp_is(key->protocol)) {
		icmp_ports(l4, key->protocol, &source, &destination);
	} else {
		source = *(__be16 *)l4;
		destination = *(__be16 *)(l4 + 2);
	}
	key->local_port = from_pod ? source : destination;
	key->remote_port = from_pod ? destination : source;
	return l4;
}

/* Returns 1 if a != b, else 0, without a branch: see ipv6_equal(). */
static __always_inline __u32 view_differs(__u32 a, __u32 b)
{
	__u32 difference = a ^ b;

	barrier_var(difference);
	return (difference | -difference) >> 31;
}

/* Returns not 0 if two MACs differ. */
static __always_inline __u32 view_mac_differs(const __u8 *a, const __u8 *b)
{
	__u32 difference = 0;

	for (int i = 0; i < 6; i++)
		difference |= a[i] ^ b[i];
	return difference;
}
