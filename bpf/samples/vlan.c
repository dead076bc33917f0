//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Puts a VLAN tag into frames, or takes one out. Both look at tags in the frame alone: a VLAN
 * interface in the pod hands its tag over beside the frame, unless the offload is off there
 * (`ethtool -K eth0 tx-vlan-hw-insert off`).
 */
#include "lib/headers.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* A tag as it lies in a frame, between the addresses and the EtherType (IEEE 802.1Q, 9.6). */
struct tag {
	__be16 tpid; /* 0x8100 (802.1Q) or 0x88a8 (802.1ad), network byte order */
	__be16 tci;  /* priority in the upper 3 bits, VLAN in the lower 12, network byte order */
};

/* What xdp_vlan_push puts in; nothing as long as its tpid is 0. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tag);
} vlan_push SEC(".maps");

/* Both addresses of an Ethernet header, which stay at the frame's start. */
struct macs {
	__u8 bytes[2 * ETH_ALEN];
};

/*
 * Puts the tag in vlan_push in front of the EtherType, or in front of the tags there are. The frame
 * grows by 4 bytes, which switches and bridges allow it beyond the MTU.
 */
SEC("xdp.frags")
int xdp_vlan_push(struct xdp_md *ctx)
{
	__u32 first = 0;
	const struct tag *push = bpf_map_lookup_elem(&vlan_push, &first);
	struct macs macs, *at;
	struct ethhdr *eth;
	struct cursor c;
	struct tag *tag;

	if (!push || push->tpid == 0)
		return XDP_PASS;
	c = cursor_begin(ctx);
	eth = cursor_take(&c, sizeof(*eth));
	if (!eth)
		return XDP_PASS;
	__builtin_memcpy(&macs, eth, sizeof(macs));
	/*
	 * veth and generic XDP leave 256 bytes of room in front of the frame: XDP_PACKET_HEADROOM
	 */
	if (bpf_xdp_adjust_head(ctx, -(int)sizeof(*tag)))
		return XDP_ABORTED;

	/* all pointers into the frame are void now, and this is what the verifier wants to hear */
	c = cursor_begin(ctx);
	at = cursor_take(&c, sizeof(*at));
	tag = cursor_take(&c, sizeof(*tag));
	if (!at || !tag)
		return XDP_ABORTED;
	/* the EtherType is where it was */
	*at = macs;
	*tag = *push;
	return XDP_PASS;
}

/*
 * Takes the outermost tag out of a frame, whatever VLAN it is of. Frames without one pass as they
 * are.
 */
SEC("xdp.frags")
int xdp_vlan_pop(struct xdp_md *ctx)
{
	struct cursor c = cursor_begin(ctx);
	struct ethhdr *eth = cursor_take(&c, sizeof(*eth));
	struct macs macs, *at;

	/* a frame that ends within its tag is left to the stack */
	if (!eth || !is_tag(eth->h_proto) || !cursor_take(&c, sizeof(struct tag)))
		return XDP_PASS;
	__builtin_memcpy(&macs, eth, sizeof(macs));
	if (bpf_xdp_adjust_head(ctx, sizeof(struct tag)))
		return XDP_ABORTED;

	c = cursor_begin(ctx);
	at = cursor_take(&c, sizeof(*at));
	if (!at)
		return XDP_ABORTED;
	/* the EtherType behind them is the one that the tag had */
	*at = macs;
	return XDP_PASS;
}
