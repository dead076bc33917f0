/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include <linux/in.h>
#include <linux/ip.h>

#include <bpf/bpf_endian.h>

#include "packet.h"

/* RFC 791, 3.1: the fields of frag_off, host byte order. */
#define IPV4_MORE_FRAGMENTS 0x2000
#define IPV4_OFFSET_MASK    0x1fff

/*
 * Reads the IPv4 header at l3_off; sets family, l4_protocol, l4_off, l3_end and flags. Judges the header
 * as ip_rcv_core() does (net/ipv4/ip_input.c), but for the checksum.
 */
static __always_inline enum parse_result ipv4_parse(struct packet *pkt)
{
	struct iphdr *ip = packet_header(pkt, pkt->l3_off, sizeof(*ip));
	__u32 header_len, total_len, fragment;

	pkt->family = FAMILY_IPV4;
	if (!ip)
		return packet_short(pkt, pkt->l3_off, sizeof(*ip));
	header_len = ip->ihl * 4;
	if (ip->version != 4 || header_len < sizeof(*ip))
		return PARSE_MALFORMED;
	total_len = bpf_ntohs(ip->tot_len);
	if (total_len == 0 && packet_big(pkt, pkt->l3_off))
		total_len = pkt->len - pkt->l3_off;
	if (total_len < header_len)
		return PARSE_MALFORMED;
	if (pkt->l3_off + total_len > pkt->len)
		return PARSE_TRUNCATED;
	if (header_len > sizeof(*ip))
		pkt->flags |= PACKET_OPTIONS;
	fragment = bpf_ntohs(ip->frag_off);
	if (fragment & (IPV4_MORE_FRAGMENTS | IPV4_OFFSET_MASK))
		pkt->flags |= PACKET_FRAGMENT;
	if (fragment & IPV4_OFFSET_MASK)
		pkt->flags |= PACKET_LATER_FRAGMENT;
	pkt->fragment_id = ip->id;
	pkt->l4_protocol = ip->protocol;
	pkt->l3_end = pkt->l3_off + total_len;
	pkt->l4_off = pkt->l3_off + header_len;
	pkt->payload_off = pkt->l4_off;
	return PARSE_OK;
}
