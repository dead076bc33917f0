// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* A map as libbpf took it below 1.0, for a test. */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

struct {
	__u32 type, key_size, value_size, max_entries, map_flags;
} counters SEC("maps") = {BPF_MAP_TYPE_ARRAY, 4, 8, 1, 0};

SEC("xdp")
int only(struct xdp_md *ctx)
{
	__u32 key = 0;

	return bpf_map_lookup_elem(&counters, &key) ? XDP_PASS : XDP_DROP;
}
