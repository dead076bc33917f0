/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include <stddef.h>

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ipv6.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include "config.h"
#include "icmp.h"
#include "neighbour.h"
#include "packet.h"
#include "quote.h"
#include "verdict.h"
#include "view.h"

/* Reads what an ICMP message of its family is about, or claims. */
static __always_inline void fill_icmp(const struct packet *pkt, enum direction direction,
				      struct view *view)
{
	__u8 type = view->icmp_type;
	struct ipv6hdr *ip6;

	if (icmp_is_about(pkt->l4_protocol, type)) {
		view->flags |= VIEW_NO_FLOW;
		if (icmp_is_error(pkt->l4_protocol, type))
			quote_read(pkt, direction, view);
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
			neighbour_discovery(pkt, view);
	} else if (ip6->hop_limit == MLD_HOP_LIMIT &&
		   ((type >= ICMPV6_MLD_QUERY && type <= ICMPV6_MLD_DONE) ||
		    type == ICMPV6_MLD2_REPORT)) {
		view->flags |= VIEW_NEIGHBOUR;
	}
}

/* Reads what else matters to a packet that need not go by the stack. */
static __always_inline void fill_plain(const struct packet *pkt, struct view *view)
{
	bool ipv4 = pkt->family == FAMILY_IPV4;
	__u8 *hops = packet_header(pkt, pkt->l3_off + (ipv4 ? 8 : 7), 1);
	__u8 protocol = pkt->l4_protocol;

	if (!hops || pkt->l3_off != ETH_HLEN || (pkt->flags & (PACKET_FRAGMENT | PACKET_OPTIONS)))
		return;
	if (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP &&
	    !(icmp_is(protocol) && (icmp_is_echo_request(protocol, view->icmp_type) ||
				    icmp_is_echo_reply(protocol, view->icmp_type))))
		return;
	view->hops = *hops;
	view->datagram_len =
		pkt->gso_size ? pkt->payload_off - ETH_HLEN + pkt->gso_size : pkt->len - ETH_HLEN;
	view->flags |= VIEW_PLAIN;
}

/* Fills the view of an IP packet that was parsed. */
static __always_inline void fill_ip(const struct packet *pkt, enum direction direction,
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
	if (icmp_is(pkt->l4_protocol)) {
		view->icmp_type = l4[0];
		view->port = l4[0] << 8 | l4[1];
		fill_icmp(pkt, direction, view);
	} else if (pkt->l4_protocol == IPPROTO_TCP) {
		__u8 *flags = packet_header(pkt, off + 13, 1);

		if (flags)
			view->tcp_flags = *flags;
		view->sequence = *(__be32 *)(l4 + 4);
	}
	if (config_redirect)
		fill_plain(pkt, view);
}

/* Fills the CPU's view with a packet that was parsed with result. */
static __always_inline void fill_view(struct packet *pkt, enum parse_result result,
				      enum direction direction)
{
	struct view *view = view_scratch();
	struct ethhdr *eth;

	if (!view)
		return;
	__builtin_memset(view, 0, offsetof(struct view, parsed));
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
		fill_ip(pkt, direction, view);
	else if (pkt->ethertype == ETH_P_ARP)
		neighbour_arp(pkt, view);
	if (view->options_off)
		neighbour_options(pkt, view);
}
