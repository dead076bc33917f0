/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include "packet.h"

/*
 * Returns value, which must lie within mask (at most 0x1fff, all ones), so that the verifier no
 * longer knows it but for the mask. What joins after a branch is then one state to it, not one
 * for each way that led there: without this it walks all that follows once for each combination
 * of tags, headers, protocols and results, 72,000 instructions and 190 ms a program on 6.18, and
 * past a further branch or two fails with "BPF program is too large. Processed 1000001 insn".
 * No frame is as long as 2^20 bytes (GSO_MAX_SIZE is 8 * 65535), so what is added is 0.
 */
static __always_inline __u32 verifier_forget(const struct packet *pkt, __u32 value, __u32 mask)
{
	value = (value + (pkt->len >> 20)) & mask;
	/* here, and not where it is first used */
	barrier_var(value);
	return value;
}

/* As verifier_forget(), for a value of any 32 bits. */
static __always_inline __u32 verifier_forget_all(const struct packet *pkt, __u32 value)
{
	/* the product may be anything, as far as the verifier reckons */
	value += (pkt->len >> 20) * 0x00100001;
	barrier_var(value);
	return value;
}
