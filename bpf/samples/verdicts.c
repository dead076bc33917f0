//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The smallest programs there are: each says one thing about every packet. The pod's statistics
 * (xdpctl stats) show what they did.
 */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Lets every packet go on: to the next program, the pod's filter, the stack. */
SEC("xdp.frags")
int xdp_pass(struct xdp_md *ctx)
{
	return XDP_PASS;
}

/* Drops every packet, ARP and neighbour discovery too: the pod is cut off. */
SEC("xdp.frags")
int xdp_drop(struct xdp_md *ctx)
{
	return XDP_DROP;
}

/*
 * Drops every packet as a program does that has met an error. The kernel then hits the tracepoint
 * xdp:xdp_exception, which `perf trace -e xdp:xdp_exception` and bpftrace can watch.
 */
SEC("xdp.frags")
int xdp_abort(struct xdp_md *ctx)
{
	return XDP_ABORTED;
}
