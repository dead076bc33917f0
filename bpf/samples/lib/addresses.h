/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include <stdbool.h>

#include <linux/in6.h>
#include <linux/types.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/*
 * Whether an address (network byte order) may be one host's: not of "this network", loopback,
 * multicast, class E or the broadcast address (RFC 1122, 3.2.1.3). What only a node knows it does
 * not tell: the broadcast addresses of its networks.
 */
static __always_inline bool ipv4_is_host(__be32 address)
{
	__u8 first = bpf_ntohl(address) >> 24;

	return first != 0 && first != 127 && first < 224;
}

/* As ipv4_is_host(): not multicast (ff00::/8), and not the unspecified or the loopback address. */
static __always_inline bool ipv6_is_host(const struct in6_addr *address)
{
	const __be32 *word = address->in6_u.u6_addr32;

	if (address->in6_u.u6_addr8[0] == 0xff)
		return false;
	return word[0] != 0 || word[1] != 0 || word[2] != 0 || bpf_ntohl(word[3]) > 1;
}
