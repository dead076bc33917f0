/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include <linux/in6.h>
#include <linux/ipv6.h>

#include <bpf/bpf_endian.h>

#include "packet.h"
#include "verifier.h"

/* Extension headers that are walked; a longer chain is taken as malformed. */
#define IPV6_MAX_EXTENSIONS 8

/* RFC 8200, 4.5: the offset in frag_off, host byte order, and the M flag. */
#define IPV6_OFFSET_MASK    0xfff8
#define IPV6_MORE_FRAGMENTS 0x0001

/* RFC 8200, 4.5. */
struct ipv6_fragment {
	__u8 nexthdr;
	__u8 hdrlen;           /* reserved here, the length in the other extension headers */
	__be16 frag_off;       /* network byte order */
	__be32 identification; /* network byte order */
};

/*
 * The extension headers that another header may follow, those of ipv6_ext_hdr()
 * (net/ipv6/exthdrs_core.c), as bits by their number; all numbers are below 64.
 */
#define IPV6_EXTENSIONS                                                                            \
	(1ULL << IPPROTO_HOPOPTS | 1ULL << IPPROTO_ROUTING | 1ULL << IPPROTO_FRAGMENT |            \
	 1ULL << IPPROTO_AH | 1ULL << IPPROTO_DSTOPTS)

/* Whether nexthdr is one of them. */
static __always_inline bool ipv6_is_extension(__u8 nexthdr)
{
	return nexthdr < 64 && (IPV6_EXTENSIONS >> nexthdr & 1);
}

/*
 * Returns 1 if a == b, else 0, without a branch. With branches the verifier walks every sequence
 * of extension headers on its own, and gives up: "BPF program is too large. Processed 1000001
 * insn" (6.18).
 */
static __always_inline __u32 ipv6_equal(__u8 a, __u8 b)
{
	__u32 less_one = (__u32)(a ^ b) - 1;

	/* else the compiler sees through it and branches */
	barrier_var(less_one);
	return less_one >> 31;
}

/*
 * Reads the IPv6 header at l3_off and the extension headers behind it; sets family, l4_protocol, l4_off,
 * l3_end and flags. In a fragment other than the first, l4_protocol is what the fragment header
 * names, which may be an extension header.
 */
static __always_inline enum parse_result ipv6_parse(struct packet *pkt)
{
	struct ipv6hdr *ip6 = packet_header(pkt, pkt->l3_off, sizeof(*ip6));
	__u32 off = pkt->l3_off + sizeof(*ip6);
	__u32 payload_len, fragment = 0, id = 0;
	__u8 nexthdr;

	pkt->family = FAMILY_IPV6;
	if (!ip6)
		return packet_short(pkt, pkt->l3_off, sizeof(*ip6));
	if (ip6->version != 6)
		return PARSE_MALFORMED;
	payload_len = bpf_ntohs(ip6->payload_len);
	nexthdr = ip6->nexthdr;
	/* 0: BIG TCP, with or without a hop-by-hop jumbo option (RFC 2675, 2) */
	if (payload_len == 0 && (nexthdr == IPPROTO_HOPOPTS || packet_big(pkt, off)))
		payload_len = pkt->len - off;
	if (off + payload_len > pkt->len)
		return PARSE_TRUNCATED;
	pkt->l3_end = off + payload_len;

	for (int i = 0; i <= IPV6_MAX_EXTENSIONS; i++) {
		/* as long as the shortest extension header, and as each of them begins */
		struct ipv6_fragment *ext;
		__u32 is_fragment, is_auth, hdrlen;

		if (!ipv6_is_extension(nexthdr) || (fragment & IPV6_OFFSET_MASK)) {
			if (i > 0)
				pkt->flags |= PACKET_OPTIONS;
			if (fragment & (IPV6_OFFSET_MASK | IPV6_MORE_FRAGMENTS))
				pkt->flags |= PACKET_FRAGMENT;
			if (fragment & IPV6_OFFSET_MASK)
				pkt->flags |= PACKET_LATER_FRAGMENT;
			pkt->fragment_id = id;
			pkt->l4_protocol = nexthdr;
			pkt->l4_off = off;
			pkt->payload_off = off;
			return PARSE_OK;
		}
		if (off + sizeof(*ext) > pkt->l3_end)
			return PARSE_TRUNCATED;
		ext = packet_header(pkt, off, sizeof(*ext));
		if (!ext)
			return packet_short(pkt, off, sizeof(*ext));
		is_fragment = ipv6_equal(nexthdr, IPPROTO_FRAGMENT);
		is_auth = ipv6_equal(nexthdr, IPPROTO_AH);
		fragment |= bpf_ntohs(ext->frag_off) & -is_fragment;
		id |= ext->identification & -is_fragment;
		/* 8-byte units less one (RFC 8200, 4.2), 4-byte units less two (RFC 4302, 2.2) */
		hdrlen = ext->hdrlen & (is_fragment - 1);
		off += (hdrlen + 1 + is_auth) << (3 - is_auth);
		nexthdr = ext->nexthdr;
		if (off > pkt->l3_end)
			return PARSE_TRUNCATED;
		off = verifier_forget(pkt, off, 0x1fff);
	}
	return PARSE_MALFORMED;
}
