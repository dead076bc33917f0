/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include <stdbool.h>

#include <linux/in.h>
#include <linux/in6.h>
#include <linux/types.h>

#include <bpf/bpf_endian.h>

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

/* Whether a protocol is ICMP, of either family. */
static __always_inline bool icmp_is(__u8 protocol)
{
	return protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6;
}

/* Whether an ICMP message is an echo request (RFC 792, RFC 4443). */
static __always_inline bool icmp_is_echo_request(__u8 protocol, __u8 type)
{
	return type == (protocol == IPPROTO_ICMP ? 8 : 128);
}

/* Whether an ICMP message is an echo reply. */
static __always_inline bool icmp_is_echo_reply(__u8 protocol, __u8 type)
{
	return type == (protocol == IPPROTO_ICMP ? 0 : 129);
}

/*
 * Returns the type of an ICMP message, or, of a reply that answers it, of the request: types 13 to
 * 18 are such pairs (RFC 792, RFC 950).
 */
static __always_inline __u8 icmp_request_type(__u8 protocol, __u8 type)
{
	return protocol == IPPROTO_ICMP && type >= 13 && type <= 18 ? ((type - 1) & ~1) + 1 : type;
}

/*
 * Whether an ICMP message is about another packet (RFC 1122, 3.2.2; RFC 4443, 2.1): an error or a
 * redirect.
 */
static __always_inline bool icmp_is_about(__u8 protocol, __u8 type)
{
	return protocol == IPPROTO_ICMP
		       ? type == 3 || type == 4 || type == 5 || type == 11 || type == 12
		       : type < 128;
}

/*
 * Whether an ICMP message passes with the flow that it is about. A redirect does not: it is about
 * the way of all packets, and whoever sends one need not be a router.
 */
static __always_inline bool icmp_is_error(__u8 protocol, __u8 type)
{
	return protocol == IPPROTO_ICMP ? type == 3 || type == 4 || type == 11 || type == 12
					: type >= 1 && type <= 4;
}

/*
 * Reads what stands for ports in the ICMP message at l4, so that a flow is that of one asker and
 * one question. Of echo it is the identifier on the side that asks, and 0 on the other: who was
 * pinged may answer, and not ping in turn. Of all else it is the type, on both.
 */
static __always_inline void icmp_ports(const __u8 *l4, __u8 protocol, __be16 *source,
				       __be16 *destination)
{
	if (icmp_is_echo_request(protocol, l4[0]))
		*source = *(__be16 *)(l4 + 4);
	else if (icmp_is_echo_reply(protocol, l4[0]))
		*destination = *(__be16 *)(l4 + 4);
	else
		*source = *destination = bpf_htons(icmp_request_type(protocol, l4[0]));
}
