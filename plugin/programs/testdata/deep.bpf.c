// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* More on the stack than a program may have with those that it calls, for a test. */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

static __attribute__((noinline)) int inner(struct xdp_md *ctx)
{
	volatile __u8 buffer[400] = {};

	return buffer[ctx->rx_queue_index & 127];
}

SEC("xdp")
int deep(struct xdp_md *ctx)
{
	volatile __u8 buffer[400] = {};

	return buffer[ctx->rx_queue_index & 127] + inner(ctx);
}
