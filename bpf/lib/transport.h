/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include <linux/in.h>
#include <linux/in6.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include <bpf/bpf_endian.h>

#include "packet.h"

/* The smallest ICMP and ICMPv6 message that their receivers take (icmp_rcv(), icmpv6_rcv()), bytes. */
#define ICMP_HEADER_LEN 8

/* Flags in byte 13 of a TCP header (RFC 9293, 3.1). */
#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

/* Returns the key of the counters by protocol for an IP protocol number in a packet of family. */
static __always_inline enum protocol transport_protocol(__u8 family, __u8 l4_protocol)
{
	switch (l4_protocol) {
	case IPPROTO_TCP:
		return PROTOCOL_TCP;
	case IPPROTO_UDP:
		return PROTOCOL_UDP;
	case IPPROTO_ICMP:
		return family == FAMILY_IPV4 ? PROTOCOL_ICMP : PROTOCOL_OTHER;
	case IPPROTO_ICMPV6:
		return family == FAMILY_IPV6 ? PROTOCOL_ICMPV6 : PROTOCOL_OTHER;
	default:
		return PROTOCOL_OTHER;
	}
}

/*
 * Judges the L4 header at l4_off, as far as tcp_v4_rcv(), __udp4_lib_rcv() and icmp_rcv() do, but
 * for checksums. Sets protocol and payload_off, and l4_off to 0 where there is no header to read.
 * A first fragment must hold the whole header: one that does not (RFC 1858) is truncated.
 */
static __always_inline enum parse_result transport_parse(struct packet *pkt)
{
	__u32 off = pkt->l4_off;

	pkt->protocol = transport_protocol(pkt->family, pkt->l4_protocol);
	if (pkt->protocol == PROTOCOL_OTHER || (pkt->flags & PACKET_LATER_FRAGMENT)) {
		pkt->l4_off = 0;
		return PARSE_OK;
	}
	if (pkt->protocol == PROTOCOL_TCP) {
		struct tcphdr *tcp;
		__u32 size;

		if (off + sizeof(*tcp) > pkt->l3_end)
			return PARSE_TRUNCATED;
		tcp = packet_header(pkt, off, sizeof(*tcp));
		if (!tcp)
			return packet_short(pkt, off, sizeof(*tcp));
		size = tcp->doff * 4;
		if (size < sizeof(*tcp))
			return PARSE_MALFORMED;
		pkt->payload_off = off + size;
		return off + size > pkt->l3_end ? PARSE_TRUNCATED : PARSE_OK;
	}
	if (pkt->protocol == PROTOCOL_UDP) {
		struct udphdr *udp;
		__u32 size;

		if (off + sizeof(*udp) > pkt->l3_end)
			return PARSE_TRUNCATED;
		udp = packet_header(pkt, off, sizeof(*udp));
		if (!udp)
			return packet_short(pkt, off, sizeof(*udp));
		pkt->payload_off = off + sizeof(*udp);
		size = bpf_ntohs(udp->len);
		/* RFC 2675, 4: a jumbogram has 0, in IPv6 only */
		if (size == 0 && pkt->family == FAMILY_IPV6)
			return PARSE_OK;
		if (size < sizeof(*udp))
			return PARSE_MALFORMED;
		if (pkt->flags & PACKET_FRAGMENT)
			return PARSE_OK;
		return off + size > pkt->l3_end ? PARSE_TRUNCATED : PARSE_OK;
	}
	if (off + ICMP_HEADER_LEN > pkt->l3_end)
		return PARSE_TRUNCATED;
	if (!packet_header(pkt, off, ICMP_HEADER_LEN))
		return packet_short(pkt, off, ICMP_HEADER_LEN);
	return PARSE_OK;
}
