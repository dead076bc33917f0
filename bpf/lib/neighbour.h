/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include <linux/types.h>

#include <bpf/bpf_endian.h>

#include "icmp.h"
#include "packet.h"
#include "view.h"

/* What ARP (RFC 826) and neighbour discovery (RFC 4861) packets claim. */

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

/* Returns VIEW_OTHER_MAC if a packet claims another MAC than it is sent from, else 0. */
static __always_inline __u32 neighbour_other_mac(const struct view *view, const __u8 *claimed)
{
	return view_differs(view_mac_differs(view->source_mac, claimed), 0) * VIEW_OTHER_MAC;
}

/* Reads what an ARP packet claims. */
static __always_inline void neighbour_arp(const struct packet *pkt, struct view *view)
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
	view->flags |= neighbour_other_mac(view, arp->sender_mac);
	/* a probe for an address asks without one (RFC 5227, 2.1.1) */
	if (view->claim[12] | view->claim[13] | view->claim[14] | view->claim[15])
		view->flags |= VIEW_CLAIM;
}

/* Whether an IPv6 packet that the pod sent is from the unspecified address. */
static __always_inline bool neighbour_from_nowhere(const struct view *view)
{
	__u8 bits = 0;

	for (int i = 0; i < 16; i++)
		bits |= view->key.local[i];
	return bits == 0;
}

/* Reads the target of a solicitation or advertisement that claims it (RFC 4861, 4.3 and 4.4). */
static __always_inline void neighbour_target(const struct packet *pkt, struct view *view)
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
static __always_inline void neighbour_discovery(const struct packet *pkt, struct view *view)
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
		if (!neighbour_from_nowhere(view))
			break;
		/*
		 * Duplicate address detection: its option is not for one without an address (RFC
		 * 4861, 4.3). Another that does not yet use the target for sure gives it up (RFC
		 * 4862, 5.4.3).
		 */
		mac_option = 0;
		neighbour_target(pkt, view);
		break;
	default: /* ICMPV6_NEIGHBOUR_ADVERT */
		off += ND_TARGET_LEN;
		mac_option = ND_OPTION_TARGET_MAC;
		neighbour_target(pkt, view);
		break;
	}
	view->options_off = off;
	view->mac_option = mac_option;
}

/*
 * Reads the options of a neighbour discovery message. Apart from the rest of the view, and after
 * it: where all ways to get here are one to the verifier.
 */
static __always_inline void neighbour_options(const struct packet *pkt, struct view *view)
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
		other = neighbour_other_mac(view, option->mac);
		view->flags |= other & (view_differs(option->type, view->mac_option) - 1);
		*next = off + option->len * 8;
	}
	if (*next != pkt->l3_end)
		view->flags |= VIEW_BROKEN;
}
