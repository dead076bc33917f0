/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/types.h>

#include <bpf/bpf_endian.h>

#include "ipv4.h"
#include "packet.h"
#include "verdict.h"
#include "verifier.h"
#include "view.h"

/* Returns 0 if two addresses of a flow's key are the same. */
static __always_inline __u8 quote_differs(const __u8 *a, const __u8 *b)
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
static __always_inline void quote_read(const struct packet *pkt, enum direction direction,
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
	if (quote_differs(by_pod ? view->key.local : view->key.remote,
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
