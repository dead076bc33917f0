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

#include "config.h"
#include "direct.h"
#include "drop.h"
#include "endpoint.h"
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
	__u8 tcp_flags;    /* byte 13 of the TCP header */
	__u8 icmp_type;    /* of ICMP in IPv4 and ICMPv6 in IPv6 */
	__u8 mac_option;   /* neighbour discovery: type of the option that claims a MAC, or 0 */
	__u8 hops;         /* TTL or hop limit */
	__u16 options_off; /* neighbour discovery: where its options begin in the frame, or 0 */
	__u8 parsed[PACKET_REST]; /* the packet that was parsed, without its pointers */
	struct decision decision; /* the filter's, here for the same reason */
	struct direct_key direct; /* the redirect's, the same */
	struct endpoint target;   /* the pod that the packet goes to directly */
	__u32 target_flags;       /* enum slot_flag */
	__u32 routed;             /* not 0: by the node as a router */
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

/* Hop limits of what has not been through a router and of what cannot go (RFC 4861, 3.1; RFC 2710, 3). */
#define ND_HOP_LIMIT  255
#define MLD_HOP_LIMIT 1

/* Options of a neighbour discovery message that are read; a longer list is malformed. */
#define ND_MAX_OPTIONS 8

/* Bytes of the target in solicitations and advertisements of neighbours (RFC 4861, 4.3, 4.4). */
#define ND_TARGET_LEN 16

/* A neighbour discovery option of 8 bytes, as the link-layer addresses are. */
struct nd_option {
	__u8 type;
	__u8 len; /* in units of 8 bytes */
	__u8 mac[6];
};

/* Bytes of an SCTP common header (RFC 9260, 3.1). */
#define SCTP_HEADER_LEN 12

static __always_inline bool view_is_icmp(__u8 protocol)
{
	return protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6;
}

/* Whether an ICMP message is an echo request (RFC 792, RFC 4443). */
static __always_inline bool view_is_echo_request(__u8 protocol, __u8 type)
{
	return type == (protocol == IPPROTO_ICMP ? 8 : 128);
}

/* Whether an ICMP message is an echo reply. */
static __always_inline bool view_is_echo_reply(__u8 protocol, __u8 type)
{
	return type == (protocol == IPPROTO_ICMP ? 0 : 129);
}

/*
 * Returns the type of an ICMP message, or, of a reply that answers it, of the request: types 13 to
 * 18 are such pairs (RFC 792, RFC 950).
 */
static __always_inline __u8 view_request_type(__u8 protocol, __u8 type)
{
	return protocol == IPPROTO_ICMP && type >= 13 && type <= 18 ? ((type - 1) & ~1) + 1 : type;
}

/*
 * Whether an ICMP message is about another packet (RFC 1122, 3.2.2; RFC 4443, 2.1): an error or a
 * redirect.
 */
static __always_inline bool view_is_about(__u8 protocol, __u8 type)
{
	return protocol == IPPROTO_ICMP
		       ? type == 3 || type == 4 || type == 5 || type == 11 || type == 12
		       : type < 128;
}

/*
 * Whether an ICMP message passes with the flow that it is about. A redirect does not: it is about
 * the way of all packets, and whoever sends one need not be a router.
 */
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

/*
 * Reads what stands for ports in the ICMP message at l4, so that a flow is that of one asker and
 * one question. Of echo it is the identifier on the side that asks, and 0 on the other: who was
 * pinged may answer, and not ping in turn. Of all else it is the type, on both.
 */
static __always_inline void view_icmp_ports(const __u8 *l4, __u8 protocol, __be16 *source,
					    __be16 *destination)
{
	if (view_is_echo_request(protocol, l4[0]))
		*source = *(__be16 *)(l4 + 4);
	else if (view_is_echo_reply(protocol, l4[0]))
		*destination = *(__be16 *)(l4 + 4);
	else
		*source = *destination = bpf_htons(view_request_type(protocol, l4[0]));
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
	if (view_is_icmp(key->protocol)) {
		view_icmp_ports(l4, key->protocol, &source, &destination);
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

/* Returns VIEW_OTHER_MAC if a packet claims another MAC than it is sent from, else 0. */
static __always_inline __u32 view_other_mac(const struct view *view, const __u8 *claimed)
{
	return view_differs(view_mac_differs(view->source_mac, claimed), 0) * VIEW_OTHER_MAC;
}

/* Reads what an ARP packet claims. */
static __always_inline void view_arp(const struct packet *pkt, struct view *view)
{
	struct arp_ethernet *arp = packet_header(pkt, pkt->l3_off, sizeof(*arp));

	if (!arp) {
		view->flags |= VIEW_BROKEN;
		return;
	}
	view->flags |= VIEW_ARP;
	if (arp->hardware != bpf_htons(1) || arp->protocol != bpf_htons(ETH_P_IP) ||
	    arp->hardware_len != 6 || arp->protocol_len != 4) {
		view->flags |= VIEW_FALSE; /* nobody can check it */
		return;
	}
	view->claim[10] = view->claim[11] = 0xff;
	__builtin_memcpy(view->claim + 12, arp->sender_ip, 4);
	view->flags |= view_other_mac(view, arp->sender_mac);
	/* a probe for an address asks without one (RFC 5227, 2.1.1) */
	if (view->claim[12] | view->claim[13] | view->claim[14] | view->claim[15])
		view->flags |= VIEW_CLAIM;
}

/* Whether an IPv6 packet that the pod sent is from the unspecified address. */
static __always_inline bool view_from_nowhere(const struct view *view)
{
	__u8 bits = 0;

	for (int i = 0; i < 16; i++)
		bits |= view->key.local[i];
	return bits == 0;
}

/* Reads the target of a solicitation or advertisement that claims it (RFC 4861, 4.3 and 4.4). */
static __always_inline void view_nd_target(const struct packet *pkt, struct view *view)
{
	__u8 *target = packet_header(pkt, pkt->l4_off + 8, ND_TARGET_LEN);

	if (!target) {
		view->flags |= VIEW_BROKEN;
		return;
	}
	__builtin_memcpy(view->claim, target, ND_TARGET_LEN);
	view->flags |= VIEW_CLAIM;
}

/*
 * Reads what a message of neighbour discovery claims (RFC 4861, 4). An option that cannot be
 * walked makes it broken, as it does for its receiver (RFC 4861, 6.1 and 7.1).
 */
static __always_inline void view_nd(const struct packet *pkt, struct view *view)
{
	__u32 off = pkt->l4_off + 8;
	__u8 mac_option = ND_OPTION_SOURCE_MAC;

	switch (view->icmp_type) {
	case ICMPV6_ROUTER_SOLICIT:
		break;
	case ICMPV6_ROUTER_ADVERT:
	case ICMPV6_REDIRECT:
		/* only routers send these; what is in them is for their receivers to judge */
		view->flags |= VIEW_FALSE;
		return;
	case ICMPV6_NEIGHBOUR_SOLICIT:
		off += ND_TARGET_LEN;
		if (!view_from_nowhere(view))
			break;
		/*
		 * Duplicate address detection: its option is not for one without an address (RFC
		 * 4861, 4.3). Another that does not yet use the target for sure gives it up (RFC
		 * 4862, 5.4.3).
		 */
		mac_option = 0;
		view_nd_target(pkt, view);
		break;
	default: /* ICMPV6_NEIGHBOUR_ADVERT */
		off += ND_TARGET_LEN;
		mac_option = ND_OPTION_TARGET_MAC;
		view_nd_target(pkt, view);
		break;
	}
	view->options_off = off;
	view->mac_option = mac_option;
}

/*
 * Reads the options of a neighbour discovery message. Apart from the rest of the view, and after
 * it: where all ways to get here are one to the verifier.
 */
static __always_inline void view_nd_options(const struct packet *pkt, struct view *view)
{
	volatile __u16 *next = &view->options_off;
	__u32 off;

	for (int i = 0; i < ND_MAX_OPTIONS; i++) {
		struct nd_option *option;
		__u32 is_mac, bad, other;

		off = *next & 0x1fff;
		barrier_var(off);
		if (off + sizeof(*option) > pkt->l3_end)
			break;
		option = packet_header(pkt, off, sizeof(*option));
		if (!option)
			break;
		/* without branches, as they multiply with the options */
		is_mac = 1 - (view_differs(option->type, ND_OPTION_SOURCE_MAC) &
			      view_differs(option->type, ND_OPTION_TARGET_MAC));
		bad = 1 - view_differs(option->len, 0);
		bad |= is_mac & view_differs(option->len, 1);
		view->flags |= bad * VIEW_BROKEN;
		other = view_other_mac(view, option->mac);
		view->flags |= other & (view_differs(option->type, view->mac_option) - 1);
		*next = off + option->len * 8;
	}
	if (*next != pkt->l3_end)
		view->flags |= VIEW_BROKEN;
}

/* Returns 0 if two addresses of a flow's key are the same. */
static __always_inline __u8 view_address_differs(const __u8 *a, const __u8 *b)
{
	__u8 difference = 0;

	for (int i = 0; i < 16; i++)
		difference |= a[i] ^ b[i];
	return difference;
}

/*
 * Reads the flow that an ICMP error is about from the packet that it quotes: what the pod gets
 * quotes what it sent, and the other way round. It goes to whoever sent that (RFC 792; RFC 4443,
 * 2.2): one for anybody else is about nothing.
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
	if (view_address_differs(by_pod ? view->key.local : view->key.remote,
				 by_pod ? view->quote.local : view->quote.remote))
		return;
	off = verifier_forget(pkt, off, 0x1fff);
	/* RFC 792: as many bytes of what is behind the header are quoted at least */
	if (off + 8 > pkt->l3_end || !packet_header(pkt, off, 8))
		return;
	if (view_has_ports(pkt->family, view->quote.protocol))
		view_ports(pkt, off, by_pod, &view->quote);
	view->flags |= VIEW_QUOTE;
}

/* Reads what an ICMP message of its family is about, or claims. */
static __always_inline void view_icmp(const struct packet *pkt, enum direction direction,
				      struct view *view)
{
	__u8 type = view->icmp_type;
	struct ipv6hdr *ip6;

	if (view_is_about(pkt->l4_protocol, type)) {
		view->flags |= VIEW_NO_FLOW;
		if (view_is_error(pkt->l4_protocol, type))
			view_quote(pkt, direction, view);
		return;
	}
	if (pkt->l4_protocol != IPPROTO_ICMPV6)
		return;
	ip6 = packet_header(pkt, pkt->l3_off, sizeof(*ip6));
	if (!ip6)
		return;
	if (type >= ICMPV6_ROUTER_SOLICIT && type <= ICMPV6_REDIRECT) {
		view->flags |= VIEW_NEIGHBOUR;
		/*
		 * Its receiver drops it as well if it came through a router, and in fragments (RFC
		 * 6980, 5), of which the options could not be checked.
		 */
		if (ip6->hop_limit != ND_HOP_LIMIT || (view->flags & VIEW_FIRST_FRAGMENT))
			view->flags |= VIEW_BROKEN;
		else
			view_nd(pkt, view);
	} else if (ip6->hop_limit == MLD_HOP_LIMIT &&
		   ((type >= ICMPV6_MLD_QUERY && type <= ICMPV6_MLD_DONE) ||
		    type == ICMPV6_MLD2_REPORT)) {
		view->flags |= VIEW_NEIGHBOUR;
	}
}

/* Reads what else matters to a packet that need not go by the stack. */
static __always_inline void view_plain(const struct packet *pkt, struct view *view)
{
	bool ipv4 = pkt->family == FAMILY_IPV4;
	__u8 *hops = packet_header(pkt, pkt->l3_off + (ipv4 ? 8 : 7), 1);
	__u8 protocol = pkt->l4_protocol;

	if (!hops || pkt->l3_off != ETH_HLEN || (pkt->flags & (PACKET_FRAGMENT | PACKET_OPTIONS)))
		return;
	if (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP &&
	    !(view_is_icmp(protocol) && (view_is_echo_request(protocol, view->icmp_type) ||
					 view_is_echo_reply(protocol, view->icmp_type))))
		return;
	view->hops = *hops;
	view->datagram_len =
		pkt->gso_size ? pkt->payload_off - ETH_HLEN + pkt->gso_size : pkt->len - ETH_HLEN;
	view->flags |= VIEW_PLAIN;
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
	/*
	 * What is fragmented anew on its way through the node does not say where it came in
	 * (ip6_copy_metadata() in net/ipv6/ip6_output.c; IPv4 does), and has such a header.
	 */
	if (pkt->family == FAMILY_IPV6 && (pkt->flags & PACKET_OPTIONS))
		view->flags &= ~VIEW_FROM_HOST;
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
	else if (off + SCTP_HEADER_LEN > pkt->l3_end || !packet_header(pkt, off, SCTP_HEADER_LEN))
		view->flags |= VIEW_BROKEN;
	l4 = view_ports(pkt, off, from_pod, &view->key);
	if (!l4) {
		view->flags |= VIEW_BROKEN;
		return;
	}
	view->port = l4[2] << 8 | l4[3];
	if (view_is_icmp(pkt->l4_protocol)) {
		view->icmp_type = l4[0];
		view->port = l4[0] << 8 | l4[1];
		view_icmp(pkt, direction, view);
	} else if (pkt->l4_protocol == IPPROTO_TCP) {
		__u8 *flags = packet_header(pkt, off + 13, 1);

		if (flags)
			view->tcp_flags = *flags;
		view->sequence = *(__be32 *)(l4 + 4);
	}
	if (config_redirect)
		view_plain(pkt, view);
}

/* Fills the CPU's view with a packet that was parsed with result. */
static __always_inline void view_fill(struct packet *pkt, enum parse_result result,
				      enum direction direction)
{
	struct view *view = view_scratch();
	struct ethhdr *eth;

	if (!view)
		return;
	__builtin_memset(view, 0, sizeof(*view));
	__builtin_memcpy(view->parsed, &pkt->len, sizeof(view->parsed));
	if (result != PARSE_OK)
		view->flags |= VIEW_BROKEN;
	if (pkt->from_host)
		view->flags |= VIEW_FROM_HOST;
	/*
	 * Read back, all that parsing found may be anything to the verifier, and its results are one
	 * state and not one for each way that led to them: half of all that it walks, on 6.18.
	 */
	barrier();
	__builtin_memcpy(&pkt->len, view->parsed, sizeof(view->parsed));
	pkt->l3_off &= 0x1f;
	pkt->l4_off &= 0x1fff;
	pkt->payload_off &= 0x1fff;
	view->len = pkt->len;
	view->packets = pkt->packets;
	view->ethertype = pkt->ethertype;
	/* more tags than the parser looks through, of which the stack may take off any number */
	if (view->ethertype == ETH_P_8021Q || view->ethertype == ETH_P_8021AD)
		view->flags |= VIEW_BROKEN;
	if (view->flags & VIEW_BROKEN)
		return;
	eth = packet_header(pkt, 0, sizeof(*eth));
	if (!eth) {
		view->flags |= VIEW_BROKEN;
		return;
	}
	__builtin_memcpy(view->source_mac, eth->h_source, 6);
	__builtin_memcpy(view->destination_mac, eth->h_dest, 6);
	if (pkt->family != FAMILY_OTHER)
		view_ip(pkt, direction, view);
	else if (pkt->ethertype == ETH_P_ARP)
		view_arp(pkt, view);
	if (view->options_off)
		view_nd_options(pkt, view);
}
