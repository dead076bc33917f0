/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include <linux/types.h>

/*
 * The Internet checksum (RFC 1071). It comes out the same in either byte order, as long as all that
 * goes in has the same one: here everything is in network byte order, as it lies in the packet.
 */

/* Returns the sum of 16-bit words in 16 bits, with the carries added in. */
static __always_inline __u16 checksum_fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/*
 * Returns the checksum (a field of a header) of a packet in which the 16-bit word from became to
 * (RFC 1624, 3, equation 3). A checksum that was wrong stays wrong, so that the receiver sees it.
 */
static __always_inline __sum16 checksum_replace(__sum16 checksum, __be16 from, __be16 to)
{
	__u32 sum = (__u16)~checksum;

	sum += (__u16)~from;
	sum += to;
	return ~checksum_fold(sum);
}
