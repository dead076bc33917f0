// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* More than the verifier walks (BPF_COMPLEXITY_LIMIT_INSNS), for a test: its log is long. */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

SEC("xdp")
int endless(struct xdp_md *ctx)
{
	volatile __u32 sum = 0;

	for (int i = 0; i < 1000000; i++)
		sum += bpf_get_prandom_u32() & i;
	return sum ? XDP_PASS : XDP_DROP;
}
