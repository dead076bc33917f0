// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Programs as people have them, for tests. The object is committed: make generate makes it. */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

/* A map of each pod's own. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} seen SEC(".maps");

/* One map for the node. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} all_seen SEC(".maps");

static __always_inline void add(void *map)
{
	__u32 zero = 0;
	__u64 *count = bpf_map_lookup_elem(map, &zero);

	if (count)
		__sync_fetch_and_add(count, 1);
}

/* UDP to port base + n of IPv4 ends with XDP action n, up to 5, which is none; all else passes. */
static __always_inline int by_port(struct xdp_md *ctx, __u16 base)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = data + sizeof(*eth);
	struct udphdr *udp = data + sizeof(*eth) + sizeof(*ip);
	__u16 action;

	if ((void *)(udp + 1) > data_end || eth->h_proto != bpf_htons(ETH_P_IP) ||
	    ip->protocol != IPPROTO_UDP)
		return XDP_PASS;
	action = bpf_ntohs(udp->dest) - base;
	if (action > 5)
		return XDP_PASS;
	if (action == XDP_REDIRECT)
		return bpf_redirect(ctx->ingress_ifindex, 0);
	return action;
}

/* A section as the xdp-tutorial has them, and maps of both kinds. */
SEC("xdp_first")
int first(struct xdp_md *ctx)
{
	add(&seen);
	add(&all_seen);
	return by_port(ctx, 7000);
}

/* No maps: one loaded program serves all pods. */
SEC("xdp")
int second(struct xdp_md *ctx)
{
	return by_port(ctx, 7010);
}

/* Sends TCP of IPv4 back as it is. */
SEC("xdp.frags")
int tcp_back(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = data + sizeof(*eth);

	if ((void *)(ip + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP))
		return XDP_PASS;
	return ip->protocol == IPPROTO_TCP ? XDP_TX : XDP_PASS;
}

/* Of the node, and filled by the object: refused. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__array(values, int(struct xdp_md *));
} shared_tails SEC(".maps") = {
	.values = {&second},
};

SEC("xdp")
int shared_tail(struct xdp_md *ctx)
{
	bpf_tail_call(ctx, &shared_tails, 0);
	return XDP_PASS;
}

SEC("xdp.frags")
int third(struct xdp_md *ctx)
{
	return by_port(ctx, 7020);
}

/* What the verifier refuses: it reads past what it knows to be there. */
SEC("xdp")
int refused(struct xdp_md *ctx)
{
	return *(__u8 *)(long)ctx->data;
}

SEC("tc")
int at_tc(struct __sk_buff *skb)
{
	return -1;
}

/* UDP to port base + n of IPv4 ends with n, up to 8, whatever that means at tc; all else goes on. */
static __always_inline int tc_by_port(struct __sk_buff *skb, __u16 base)
{
	void *data = (void *)(long)skb->data, *data_end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = data + sizeof(*eth);
	struct udphdr *udp = data + sizeof(*eth) + sizeof(*ip);
	__u16 verdict;

	add(&seen);
	if ((void *)(udp + 1) > data_end || eth->h_proto != bpf_htons(ETH_P_IP) ||
	    ip->protocol != IPPROTO_UDP)
		return TC_ACT_UNSPEC;
	verdict = bpf_ntohs(udp->dest) - base;
	if (verdict > TC_ACT_TRAP)
		return TC_ACT_UNSPEC;
	if (verdict == TC_ACT_REDIRECT)
		return bpf_redirect(skb->ifindex, 0);
	return verdict;
}

/* Sections as they are found for programs at tc. */
SEC("tc")
int tc_first(struct __sk_buff *skb)
{
	return tc_by_port(skb, 8000);
}

SEC("classifier")
int tc_second(struct __sk_buff *skb)
{
	return tc_by_port(skb, 8010);
}

SEC("tcx/ingress")
int tc_third(struct __sk_buff *skb)
{
	return tc_by_port(skb, 8020);
}

SEC("tcx/egress")
int tc_fourth(struct __sk_buff *skb)
{
	return tc_by_port(skb, 8030);
}

SEC("tc")
int tc_ok(struct __sk_buff *skb)
{
	return TC_ACT_OK;
}

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__array(values, int(void *));
} tails SEC(".maps") = {
	.values = {(void *)&tc_ok},
};

/* Passes by what it tail calls, drops if it cannot. */
SEC("tc")
int tc_tail(struct __sk_buff *skb)
{
	bpf_tail_call(skb, &tails, 0);
	return TC_ACT_SHOT;
}
