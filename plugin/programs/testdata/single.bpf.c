// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* One program and no map, for tests: also without BTF, and for the other byte order. */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

SEC("xdp")
int only(struct xdp_md *ctx)
{
	return XDP_TX;
}
