// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Programs for tests, in the style of the xdp-tutorial's. */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

char _license[] SEC("license") = "GPL";

/* Of each pod. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 5);
	__type(key, __u32);
	__type(value, __u64);
} own_counters SEC(".maps");

/* Of the node. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} all_counters SEC(".maps");

__u64 runs;
volatile const __u32 verdict = XDP_DROP;

/* Needs what no test gives it: it must not be loaded beside the others. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 0);
	__type(key, __u32);
	__type(value, __u64);
} impossible SEC(".maps");

static __always_inline void count(void *map, __u32 key)
{
	__u64 *value = bpf_map_lookup_elem(map, &key);

	if (value)
		__sync_fetch_and_add(value, 1);
}

SEC("xdp_pass")
int pass(struct xdp_md *ctx)
{
	return XDP_PASS;
}

SEC("xdp")
int count_own(struct xdp_md *ctx)
{
	count(&own_counters, 2);
	__sync_fetch_and_add(&runs, 1);
	return XDP_PASS;
}

SEC("xdp")
int count_all(struct xdp_md *ctx)
{
	count(&all_counters, 0);
	return XDP_PASS;
}

/* Drops, by its constant data. */
SEC("xdp.frags")
int drop(struct xdp_md *ctx)
{
	return verdict;
}

SEC("xdp/cpumap")
int on_cpu(struct xdp_md *ctx)
{
	return XDP_PASS;
}

SEC("xdp/devmap")
int on_device(struct xdp_md *ctx)
{
	return XDP_PASS;
}

SEC("xdp")
int use_impossible(struct xdp_md *ctx)
{
	count(&impossible, 0);
	return XDP_PASS;
}

/* Reads past what it knows to be there: the verifier rejects it. */
SEC("xdp")
int unchecked(struct xdp_md *ctx)
{
	return *(__u8 *)(long)ctx->data;
}

SEC("tc")
int classify(struct __sk_buff *skb)
{
	return -1;
}
