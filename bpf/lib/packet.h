/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

/* Bytes of headers, from the start of the frame, past which the parser gives up. */
#define PACKET_MAX_HEADERS 2048

enum parse_result {
	PARSE_OK,
	PARSE_TRUNCATED, /* a header, or the length that one states, reaches past the frame's end */
	PARSE_MALFORMED, /* a header's fields contradict each other */
	PARSE_NOT_LINEAR, /* the frame is long enough, but not all headers can be read in place */
};

/* Key of the counters by IP family. */
enum family {
	FAMILY_IPV4,
	FAMILY_IPV6,
	FAMILY_OTHER, /* ARP, LLDP, whatever is not IP */
	FAMILIES,
};

/* Key of the counters by protocol. */
enum protocol {
	PROTOCOL_TCP,
	PROTOCOL_UDP,
	PROTOCOL_ICMP,   /* in IPv4 only */
	PROTOCOL_ICMPV6, /* in IPv6 only */
	PROTOCOL_OTHER,  /* any other, ARP too */
	PROTOCOLS,
};

enum packet_flag {
	PACKET_FRAGMENT = 1 << 0,       /* part of a fragmented datagram */
	PACKET_LATER_FRAGMENT = 1 << 1, /* and not its first part: without an L4 header */
	PACKET_OPTIONS = 1 << 2,        /* IPv4 options or IPv6 extension headers */
};

/*
 * One packet as every hook hands it to the core. The first part comes from the hook, the second
 * from parse(). Offsets are bytes from the start of the Ethernet header.
 */
struct packet {
	void *data;      /* start of the Ethernet header */
	void *data_end;  /* end of the bytes that can be read in place */
	__u32 len;       /* bytes of the frame, whether they can be read in place or not */
	__u32 packets;   /* how many packets on a wire it stands for: more than 1 for GSO */
	__u32 from_host; /* not 0: made on the node itself, not forwarded; XDP cannot see such */
	__u32 gso_size; /* bytes of payload in each, 0 if it is not GSO or at XDP, which cannot know */

	__u8 flags;       /* enum packet_flag */
	__u8 family;      /* enum family */
	__u8 protocol;    /* enum protocol */
	__u8 l4_protocol; /* as in the last IP header parsed: IPPROTO_* */
	__u16 ethertype;  /* behind all tags, host byte order */
	__u8 direct;      /* not 0: core() redirects it to another pod */
	__u8 pad;
	__u32 l3_off;      /* of the IP header */
	__u32 l3_end;      /* where the IP datagram ends; padding may follow */
	__u32 l4_off;      /* of the L4 header, 0 if there is none */
	__u32 fragment_id; /* as it stands in the packet, of the last fragment header parsed */
	__u32 payload_off; /* behind the last header that was parsed */
};

/* Bytes of struct packet from len on. */
#define PACKET_REST (sizeof(struct packet) - offsetof(struct packet, len))

/*
 * Returns the header of size bytes at off, or NULL if it cannot be read in place; packet_short()
 * then says why. size must be a constant.
 */
static __always_inline void *packet_header(const struct packet *pkt, __u32 off, __u32 size)
{
	void *header;

	if (off > PACKET_MAX_HEADERS)
		return NULL;
	header = pkt->data + off;
	if (header + size > pkt->data_end)
		return NULL;
	return header;
}

/* Says why packet_header() gave no header of size bytes at off. */
static __always_inline enum parse_result packet_short(const struct packet *pkt, __u32 off,
						      __u32 size)
{
	if (off > PACKET_MAX_HEADERS)
		return PARSE_MALFORMED;
	return off + size > pkt->len ? PARSE_TRUNCATED : PARSE_NOT_LINEAR;
}

/*
 * Whether an IP length field of 0 means "as long as the frame": BIG TCP, which sets it to 0 when
 * what the field counts, from off on, is longer than it can say (iph_totlen() in
 * include/net/ip.h, and ip6_xmit() for IPv6). XDP is not told that a packet is GSO, but sees that
 * it is that long.
 */
static __always_inline bool packet_big(const struct packet *pkt, __u32 off)
{
	return pkt->gso_size || pkt->len - off > 0xffff;
}
