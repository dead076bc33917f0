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

#include "flow.h"
#include "ipv4.h"
#include "packet.h"
#include "verdict.h"
#include "verifier.h"

enum view_flag {
	VIEW_BROKEN = 1 << 0, /* truncated, malformed or unreadable */
	VIEW_IP = 1 << 1,     /* IPv4 or IPv6 */
	VIEW_ARP = 1 << 2,
	VIEW_LATER_FRAGMENT = 1 << 3, /* without ports */
	VIEW_FIRST_FRAGMENT = 1 << 4,
	VIEW_FROM_HOST = 1 << 5, /* made on the node itself */
	VIEW_ND = 1 << 6,        /* neighbour discovery or multicast listeners */
	VIEW_CLAIM = 1 << 7,     /* claim holds an address that the packet claims */
	VIEW_CLAIM_MAC = 1 << 8, /* claim_mac holds a MAC that it claims */
	VIEW_CLAIM_BAD = 1 << 9, /* what it claims is contradictory, or a router's to claim */
	VIEW_QUOTE = 1 << 10,    /* an ICMP error; quote holds the flow it is about */
};

/*
 * All that the filter judges a packet by, read from it once. It lies in a map, not on the stack:
 * what the verifier reads from there is any value to it, so that all ways by which a packet may
 * have been read are one from then on.
 */
struct view {
	struct flow_key key;
	struct flow_key quote;
	__u8 claim[16]; /* network byte order, IPv4 as ::ffff:a.b.c.d */
	__u8 source_mac[6];
	__u8 claim_mac[6];
	__u32 flags;       /* enum view_flag */
	__u32 fragment_id; /* as it stands in the packet */
	__u32 len;         /* as struct packet */
	__u32 packets;     /* as struct packet */
	__u16 ethertype;   /* host byte order */
	__u16 port;        /* destination port, or ICMP type << 8 | code; host byte order */
	__u8 tcp_flags;    /* byte 13 of the TCP header */
	__u8 icmp_type;
	__u8 pad[6];
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

/* RFC 826 for IPv4 over Ethernet; all of it network byte order. */
struct arp_ethernet {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_len;
	__u8 protocol_len;
	__be16 operation;
	__u8 sender_mac[6];
	__u8 sender_ip[4];
	__u8 target_mac[6];
	__u8 target_ip[4];
};

/* RFC 4861, 4: ICMPv6 types of neighbour discovery; RFC 2710 and 3810: of multicast listeners. */
#define ICMPV6_MLD_QUERY         130
#define ICMPV6_MLD_REPORT        131
#define ICMPV6_MLD_DONE          132
#define ICMPV6_ROUTER_SOLICIT    133
#define ICMPV6_ROUTER_ADVERT     134
#define ICMPV6_NEIGHBOUR_SOLICIT 135
#define ICMPV6_NEIGHBOUR_ADVERT  136
#define ICMPV6_REDIRECT          137
#define ICMPV6_MLD2_REPORT       143

#define ND_OPTION_SOURCE_MAC 1
#define ND_OPTION_TARGET_MAC 2
/* Options of a neighbour discovery message that are read; a longer list is VIEW_CLAIM_BAD. */
#define ND_MAX_OPTIONS       4

/* A neighbour discovery option of 8 bytes, as the link-layer addresses are. */
struct nd_option {
	__u8 type;
	__u8 len; /* in units of 8 bytes */
	__u8 mac[6];
};

static __always_inline bool view_is_icmp(__u8 protocol)
{
	return protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6;
}

/* Whether an ICMP message has an identifier by which a reply finds its request. */
static __always_inline bool view_is_echo(__u8 protocol, __u8 type)
{
	return protocol == IPPROTO_ICMP ? type == 8 || type == 0 : type == 128 || type == 129;
}

/* Whether an ICMP message is an error that quotes a packet (RFC 792, RFC 4443). */
static __always_inline bool view_is_error(__u8 protocol, __u8 type)
{
	return protocol == IPPROTO_ICMP ? type == 3 || type == 4 || type == 11 || type == 12
					: type >= 1 && type <= 4;
}

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

/* Reads the ports or the ICMP identifier of the L4 header at off, 8 bytes of it, into the key. */
static __always_inline __u8 *view_ports(const struct packet *pkt, __u32 off, bool from_pod,
					struct flow_key *key)
{
	__u8 *l4 = packet_header(pkt, off, 8);
	__be16 source, destination;

	if (!l4)
		return NULL;
	if (view_is_icmp(key->protocol)) {
		if (view_is_echo(key->protocol, l4[0]))
			key->remote_port = key->local_port = *(__be16 *)(l4 + 4);
		return l4;
	}
	source = *(__be16 *)l4;
	destination = *(__be16 *)(l4 + 2);
	key->local_port = from_pod ? source : destination;
	key->remote_port = from_pod ? destination : source;
	return l4;
}

/* Reads what an ARP packet claims. */
static __always_inline void view_arp(const struct packet *pkt, struct view *view)
{
	struct arp_ethernet *arp = packet_header(pkt, pkt->l3_off, sizeof(*arp));

	view->flags |= VIEW_ARP;
	if (!arp || arp->hardware_len != 6 || arp->protocol_len != 4) {
		view->flags |= VIEW_CLAIM_BAD;
		return;
	}
	view->claim[10] = view->claim[11] = 0xff;
	__builtin_memcpy(view->claim + 12, arp->sender_ip, 4);
	__builtin_memcpy(view->claim_mac, arp->sender_mac, 6);
	view->flags |= VIEW_CLAIM_MAC;
	/* a probe for an address asks without one (RFC 5227, 2.1.1) */
	if (view->claim[12] | view->claim[13] | view->claim[14] | view->claim[15])
		view->flags |= VIEW_CLAIM;
}

/* Reads what a message of neighbour discovery or of multicast listeners claims. */
static __always_inline void view_nd(const struct packet *pkt, struct view *view)
{
	__u32 off = pkt->l4_off + 8;

	view->flags |= VIEW_ND;
	switch (view->icmp_type) {
	case ICMPV6_NEIGHBOUR_SOLICIT:
	case ICMPV6_NEIGHBOUR_ADVERT: {
		__u8 *target = packet_header(pkt, off, 16);

		if (!target) {
			view->flags |= VIEW_CLAIM_BAD;
			return;
		}
		if (view->icmp_type == ICMPV6_NEIGHBOUR_ADVERT) {
			__builtin_memcpy(view->claim, target, 16);
			view->flags |= VIEW_CLAIM;
		}
		off += 16;
		break;
	}
	case ICMPV6_ROUTER_SOLICIT:
		break;
	case ICMPV6_ROUTER_ADVERT:
	case ICMPV6_REDIRECT:
		view->flags |= VIEW_CLAIM_BAD; /* only routers send these */
		return;
	default:
		return;
	}
	for (int i = 0; i <= ND_MAX_OPTIONS; i++) {
		struct nd_option *option;

		if (off + sizeof(*option) > pkt->l3_end)
			return;
		option = packet_header(pkt, off, sizeof(*option));
		if (!option || option->len == 0 || i == ND_MAX_OPTIONS)
			break;
		if (option->type == ND_OPTION_SOURCE_MAC || option->type == ND_OPTION_TARGET_MAC) {
			__u16 other = 0;

			for (int j = 0; j < 6; j++)
				other |= view->claim_mac[j] ^ option->mac[j];
			if ((view->flags & VIEW_CLAIM_MAC) && other)
				break;
			__builtin_memcpy(view->claim_mac, option->mac, 6);
			view->flags |= VIEW_CLAIM_MAC;
		}
		off = verifier_forget(pkt, off + option->len * 8, 0x1fff);
	}
	view->flags |= VIEW_CLAIM_BAD;
}

/*
 * Reads the flow that an ICMP error is about from the packet that it quotes: what the pod gets
 * quotes what it sent, and the other way round.
 */
static __always_inline void view_quote(const struct packet *pkt, enum direction direction,
				       struct view *view)
{
	bool by_pod = direction == DIRECTION_INGRESS;
	__u32 off = pkt->l4_off + 8;

	if (pkt->family == FAMILY_IPV4) {
		struct iphdr *ip = packet_header(pkt, off, sizeof(*ip));

		if (!ip || ip->version != 4 || ip->ihl < 5 ||
		    (ip->frag_off & bpf_htons(IPV4_OFFSET_MASK)))
			return;
		view->quote.protocol = ip->protocol;
		if (!view_addresses(pkt, FAMILY_IPV4, off, by_pod, &view->quote))
			return;
		off += ip->ihl * 4;
	} else {
		struct ipv6hdr *ip6 = packet_header(pkt, off, sizeof(*ip6));

		if (!ip6 || ip6->version != 6)
			return;
		view->quote.protocol = ip6->nexthdr;
		if (!view_addresses(pkt, FAMILY_IPV6, off, by_pod, &view->quote))
			return;
		off += sizeof(*ip6);
	}
	off = verifier_forget(pkt, off, 0x1fff);
	if (!view_has_ports(pkt->family, view->quote.protocol) ||
	    view_ports(pkt, off, by_pod, &view->quote))
		view->flags |= VIEW_QUOTE;
}

/* Fills the view of an IP packet that was parsed. */
static __always_inline void view_ip(const struct packet *pkt, enum direction direction,
				    struct view *view)
{
	bool from_pod = direction == DIRECTION_EGRESS;
	__u32 off = pkt->payload_off;
	__u8 *l4;

	view->flags |= VIEW_IP;
	view->key.protocol = pkt->l4_protocol;
	view->fragment_id = pkt->fragment_id;
	if (!view_addresses(pkt, pkt->family, pkt->l3_off, from_pod, &view->key)) {
		view->flags |= VIEW_BROKEN;
		return;
	}
	if (pkt->flags & PACKET_LATER_FRAGMENT) {
		view->flags |= VIEW_LATER_FRAGMENT;
		return;
	}
	if (pkt->flags & PACKET_FRAGMENT)
		view->flags |= VIEW_FIRST_FRAGMENT;
	if (!view_has_ports(pkt->family, pkt->l4_protocol))
		return;
	/* the parser does not know SCTP, and has not looked at its header */
	if (pkt->l4_off)
		off = pkt->l4_off;
	l4 = off + 8 > pkt->l3_end ? NULL : view_ports(pkt, off, from_pod, &view->key);
	if (!l4) {
		view->flags |= VIEW_BROKEN;
		return;
	}
	view->port = l4[2] << 8 | l4[3];
	if (view_is_icmp(pkt->l4_protocol)) {
		view->icmp_type = l4[0];
		view->port = l4[0] << 8 | l4[1];
		if (view_is_error(pkt->l4_protocol, view->icmp_type))
			view_quote(pkt, direction, view);
		else if (pkt->l4_protocol == IPPROTO_ICMPV6 &&
			 ((view->icmp_type >= ICMPV6_MLD_QUERY &&
			   view->icmp_type <= ICMPV6_REDIRECT) ||
			  view->icmp_type == ICMPV6_MLD2_REPORT))
			view_nd(pkt, view);
	} else if (pkt->l4_protocol == IPPROTO_TCP) {
		__u8 *flags = packet_header(pkt, off + 13, 1);

		if (flags)
			view->tcp_flags = *flags;
	}
}

/* Fills the CPU's view with a packet that was parsed with result. */
static __always_inline void view_fill(const struct packet *pkt, enum parse_result result,
				      enum direction direction)
{
	struct view *view = view_scratch();
	struct ethhdr *eth;

	if (!view)
		return;
	__builtin_memset(view, 0, sizeof(*view));
	view->len = pkt->len;
	view->packets = pkt->packets;
	view->ethertype = pkt->ethertype;
	if (pkt->from_host)
		view->flags |= VIEW_FROM_HOST;
	eth = packet_header(pkt, 0, sizeof(*eth));
	if (result != PARSE_OK || !eth) {
		view->flags |= VIEW_BROKEN;
		return;
	}
	__builtin_memcpy(view->source_mac, eth->h_source, 6);
	if (pkt->family != FAMILY_OTHER)
		view_ip(pkt, direction, view);
	else if (pkt->ethertype == ETH_P_ARP)
		view_arp(pkt, view);
}
