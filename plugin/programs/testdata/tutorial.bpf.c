// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * A file in the style of the xdp-tutorial's, for tests: several programs in sections with names of
 * their own, maps without the types of their keys, global variables, functions, and tail calls. It
 * needs nothing of who loads it but what libbpf does.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char _license[] SEC("license") = "GPL";

struct datarec {
	__u64 rx_packets;
	__u64 rx_bytes;
};

/* By sizes, not by types: BTF says nothing of what is in it. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 5);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(struct datarec));
} xdp_stats_map SEC(".maps");

enum { NEXT_STATS, NEXT_ICMP, NEXT_NOTHING };

int xdp_stats1_func(struct xdp_md *ctx);
int xdp_drop_icmp(struct xdp_md *ctx);

/* Programs to hand on to. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 3);
	__uint(key_size, sizeof(__u32));
	__array(values, int(struct xdp_md *));
} next SEC(".maps") = {
	.values =
		{
			[NEXT_STATS] = &xdp_stats1_func,
			[NEXT_ICMP] = &xdp_drop_icmp,
		},
};

/* A map in another. */
struct inner {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} inner_map SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__array(values, struct inner);
} outer_map SEC(".maps") = {
	.values = {&inner_map},
};

/* What the kernel says of itself. */
extern int LINUX_KERNEL_VERSION __kconfig;

/* .bss, .data and .rodata */
__u64 frames;
__u32 weight = 3;
volatile const __u32 otherwise = XDP_PASS;

static __always_inline int record(struct xdp_md *ctx, __u32 action)
{
	struct datarec *rec = bpf_map_lookup_elem(&xdp_stats_map, &action);

	if (!rec)
		return XDP_ABORTED;
	rec->rx_packets++;
	rec->rx_bytes += ctx->data_end - ctx->data;
	return action;
}

/* Returns the protocol of an IPv4 packet, -1 for all else: the verifier checks it as a function. */
static __attribute__((noinline)) int protocol(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = data + sizeof(*eth);

	if ((void *)(ip + 1) > data_end || eth->h_proto != bpf_htons(ETH_P_IP))
		return -1;
	return ip->protocol;
}

SEC("xdp_stats1")
int xdp_stats1_func(struct xdp_md *ctx)
{
	return record(ctx, XDP_PASS);
}

SEC("xdp_icmp")
int xdp_drop_icmp(struct xdp_md *ctx)
{
	return record(ctx, protocol(ctx) == IPPROTO_ICMP ? XDP_DROP : otherwise);
}

/* Counts in global variables. */
SEC("xdp_globals")
int xdp_count_globals(struct xdp_md *ctx)
{
	__sync_fetch_and_add(&frames, weight);
	return otherwise;
}

/* Hands on to the one that drops ICMP, which is in the array from the beginning. */
SEC("xdp_jump")
int xdp_jump_icmp(struct xdp_md *ctx)
{
	bpf_tail_call(ctx, &next, NEXT_ICMP);
	return XDP_ABORTED;
}

/* Finds nothing to hand on to, and goes on. */
SEC("xdp_fall")
int xdp_fall_through(struct xdp_md *ctx)
{
	bpf_tail_call(ctx, &next, NEXT_NOTHING);
	return record(ctx, XDP_PASS);
}

/* A function calls, and its caller goes on with what was returned. */
static __attribute__((noinline)) int jump(struct xdp_md *ctx)
{
	int action = XDP_ABORTED;

	bpf_tail_call(ctx, &next, NEXT_ICMP);
	barrier_var(action);
	return action;
}

SEC("xdp_call")
int xdp_call_icmp(struct xdp_md *ctx)
{
	int action = jump(ctx);

	__sync_fetch_and_add(&frames, 1);
	return action;
}

/* Counts in the map that is in the other. */
SEC("xdp_nested")
int xdp_count_nested(struct xdp_md *ctx)
{
	__u32 zero = 0;
	void *inner = bpf_map_lookup_elem(&outer_map, &zero);
	__u64 *count = inner ? bpf_map_lookup_elem(inner, &zero) : NULL;

	if (!count)
		return XDP_ABORTED;
	__sync_fetch_and_add(count, 1);
	return XDP_PASS;
}

/* Strings are constant data in sections of their own. */
SEC("xdp_print")
int xdp_print_never(struct xdp_md *ctx)
{
	if (ctx->data == ctx->data_end)
		bpf_printk("an empty frame on queue %d", ctx->rx_queue_index);
	return XDP_PASS;
}

SEC("xdp_version")
int xdp_know_version(struct xdp_md *ctx)
{
	return record(ctx, LINUX_KERNEL_VERSION > 0 ? XDP_PASS : XDP_ABORTED);
}

/* A section whose name says nothing of XDP. */
SEC("prog")
int default_section(struct xdp_md *ctx)
{
	return record(ctx, XDP_PASS);
}
