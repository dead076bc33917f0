/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/*
 * Reads the headers of a frame in place. Every access is checked against the frame's end, which the
 * verifier asks for, and against the lengths in the headers, which it does not: what follows an IP
 * datagram in its frame is padding, and must not be taken for a header.
 */
#include <stdbool.h>
#include <stddef.h>

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/types.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* Tags that are looked through: an 802.1ad service tag around an 802.1Q customer tag. */
#define MAX_TAGS 2

/* IPv6 extension headers that are walked: real packets have one or two. */
#define MAX_EXTENSIONS 6

/* RFC 791, 3.1 and RFC 8200, 4.5: fields of frag_off, host byte order. */
#define IPV4_MORE_FRAGMENTS 0x2000
#define IPV4_OFFSET_MASK    0x1fff
#define IPV6_MORE_FRAGMENTS 0x0001
#define IPV6_OFFSET_MASK    0xfff8

/* How far a frame has been read. */
struct cursor {
	void *pos;
	void *end;
};

/* IEEE 802.1Q, 9.6: what follows an EtherType of 0x8100 or 0x88a8. */
struct vlan_tag {
	__be16 tci;       /* priority and VLAN, network byte order */
	__be16 ethertype; /* of what follows, network byte order */
};

/* An IP header and what is known of the packet behind it. */
struct ip {
	struct iphdr *v4;   /* NULL if it is IPv6 */
	struct ipv6hdr *v6; /* NULL if it is IPv4 */
	__u32 l4_len;       /* bytes behind the IP headers, by their own account */
	__u8 protocol;      /* of what follows the IP headers: IPPROTO_* */
	bool options;       /* there are IPv4 options or IPv6 extension headers */
	bool fragment;      /* part of a datagram, the first or a later one */
	bool later;         /* and not the first: no L4 header follows */
	bool big;           /* BIG TCP: too long for the length field, which is 0 */
};

/* As ipv6_opt_hdr; the fragment header is as long and begins in the same way (RFC 8200, 4). */
struct ipv6_extension {
	__u8 nexthdr;
	__u8 hdrlen;     /* in units of 8 bytes, less one; reserved in the fragment header */
	__be16 frag_off; /* network byte order; of the fragment header only */
	__be32 rest;
};

static __always_inline struct cursor cursor_begin(const struct xdp_md *ctx)
{
	return (struct cursor){
		.pos = (void *)(long)ctx->data,
		.end = (void *)(long)ctx->data_end,
	};
}

/*
 * Returns what is at the cursor, and moves the cursor size bytes on; NULL if the frame ends before
 * that.
 */
static __always_inline void *cursor_take(struct cursor *c, __u32 size)
{
	void *at = c->pos;

	if (at + size > c->end)
		return NULL;
	c->pos = at + size;
	return at;
}

static __always_inline bool is_tag(__be16 ethertype)
{
	return ethertype == bpf_htons(ETH_P_8021Q) || ethertype == bpf_htons(ETH_P_8021AD);
}

/*
 * Reads the Ethernet header and the tags behind it. Returns the header, and the EtherType of what
 * follows, in network byte order; NULL if the frame is too short. A tag that the pod's stack hands
 * over beside the frame (skb->vlan_tci: a VLAN interface on a device that offloads tags) is not in
 * the frame, and no XDP program can see it.
 */
static __always_inline struct ethhdr *parse_ethernet(struct cursor *c, __be16 *ethertype)
{
	struct ethhdr *eth = cursor_take(c, sizeof(*eth));

	if (!eth)
		return NULL;
	*ethertype = eth->h_proto;
	for (int i = 0; i < MAX_TAGS && is_tag(*ethertype); i++) {
		struct vlan_tag *tag = cursor_take(c, sizeof(*tag));

		if (!tag)
			return NULL;
		*ethertype = tag->ethertype;
	}
	return eth;
}

static __always_inline bool parse_ipv4(struct cursor *c, struct ip *ip)
{
	struct iphdr *v4 = cursor_take(c, sizeof(*v4));
	__u32 header_len, total_len, fragment;

	if (!v4 || v4->version != 4)
		return false;
	header_len = v4->ihl * 4;
	if (header_len < sizeof(*v4) || !cursor_take(c, header_len - sizeof(*v4)))
		return false;
	total_len = bpf_ntohs(v4->tot_len);
	if (total_len == 0) {
		ip->big = true;
		ip->l4_len = c->end - c->pos;
	} else if (total_len < header_len) {
		return false;
	} else {
		ip->l4_len = total_len - header_len;
	}
	fragment = bpf_ntohs(v4->frag_off);
	ip->v4 = v4;
	ip->protocol = v4->protocol;
	ip->options = header_len > sizeof(*v4);
	ip->fragment = fragment & (IPV4_MORE_FRAGMENTS | IPV4_OFFSET_MASK);
	ip->later = fragment & IPV4_OFFSET_MASK;
	return true;
}

/*
 * Whether a header of the common form follows, or the fragment header. Not AH: what it protects is
 * not to be changed.
 */
static __always_inline bool is_extension(__u8 nexthdr)
{
	return nexthdr == IPPROTO_HOPOPTS || nexthdr == IPPROTO_ROUTING ||
	       nexthdr == IPPROTO_FRAGMENT || nexthdr == IPPROTO_DSTOPTS;
}

static __always_inline bool parse_ipv6(struct cursor *c, struct ip *ip)
{
	struct ipv6hdr *v6 = cursor_take(c, sizeof(*v6));
	__u32 fragment = 0;
	void *behind;
	__u8 nexthdr;

	if (!v6 || v6->version != 6)
		return false;
	behind = c->pos;
	nexthdr = v6->nexthdr;
	/* behind a later fragment's header is the middle of something, whatever nexthdr says */
	for (int i = 0; i < MAX_EXTENSIONS && is_extension(nexthdr) && !ip->later; i++) {
		struct ipv6_extension *ext = cursor_take(c, sizeof(*ext));
		__u32 more;

		if (!ext)
			return false;
		more = ext->hdrlen * 8;
		if (nexthdr == IPPROTO_FRAGMENT) {
			fragment = bpf_ntohs(ext->frag_off);
			more = 0;
		}
		if (!cursor_take(c, more))
			return false;
		nexthdr = ext->nexthdr;
		ip->options = true;
		ip->fragment |= !!(fragment & (IPV6_OFFSET_MASK | IPV6_MORE_FRAGMENTS));
		ip->later |= !!(fragment & IPV6_OFFSET_MASK);
	}
	ip->v6 = v6;
	ip->protocol = nexthdr;
	if (v6->payload_len == 0) {
		ip->big = true;
		ip->l4_len = c->end - c->pos;
	} else if (bpf_ntohs(v6->payload_len) < c->pos - behind) {
		return false;
	} else {
		ip->l4_len = bpf_ntohs(v6->payload_len) - (c->pos - behind);
	}
	return true;
}

/*
 * Reads an IPv4 header with its options or an IPv6 header with its extension headers, whichever
 * ethertype (network byte order) announces, and leaves the cursor behind it. False for all else,
 * and for what is broken: let such pass, the stack knows best what to do with it.
 */
static __always_inline bool parse_ip(struct cursor *c, __be16 ethertype, struct ip *ip)
{
	__builtin_memset(ip, 0, sizeof(*ip));
	if (ethertype == bpf_htons(ETH_P_IP))
		return parse_ipv4(c, ip);
	if (ethertype == bpf_htons(ETH_P_IPV6))
		return parse_ipv6(c, ip);
	return false;
}

/*
 * Returns the L4 header behind ip, size bytes, or NULL if there is none: in a later fragment, and
 * where the datagram or the frame ends before.
 */
static __always_inline void *parse_l4(struct cursor *c, const struct ip *ip, __u32 size)
{
	if (ip->later || ip->l4_len < size)
		return NULL;
	return cursor_take(c, size);
}
