/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include <linux/if_ether.h>

#include <bpf/bpf_endian.h>

#include "packet.h"
#include "verifier.h"

/* Tags that are looked through: an 802.1ad service tag around an 802.1Q customer tag. */
#define ETHERNET_MAX_TAGS 2

/* IEEE 802.1Q, 9.6: what follows an EtherType of 0x8100 or 0x88a8. */
struct vlan_tag {
	__be16 tci;       /* network byte order */
	__be16 ethertype; /* of what follows, network byte order */
};

/*
 * Reads the Ethernet header and up to ETHERNET_MAX_TAGS tags; sets ethertype and l3_off. A tag
 * that the NIC or the stack has taken out of the frame (skb->vlan_tci) is not there to be read.
 */
static __always_inline enum parse_result ethernet_parse(struct packet *pkt)
{
	struct ethhdr *eth = packet_header(pkt, 0, sizeof(*eth));
	__u32 off = sizeof(*eth);
	__u16 type;

	if (!eth)
		return packet_short(pkt, 0, sizeof(*eth));
	type = bpf_ntohs(eth->h_proto);
	for (int i = 0; i < ETHERNET_MAX_TAGS; i++) {
		struct vlan_tag *tag;

		/* what is likely is verified first, and what is like it then need not be */
		if (__builtin_expect(type != ETH_P_8021Q && type != ETH_P_8021AD, 1))
			break;
		tag = packet_header(pkt, off, sizeof(*tag));
		if (!tag)
			return packet_short(pkt, off, sizeof(*tag));
		type = bpf_ntohs(tag->ethertype);
		off += sizeof(*tag);
	}
	pkt->ethertype = type;
	pkt->l3_off = verifier_forget(pkt, off, 0x1f);
	return PARSE_OK;
}
