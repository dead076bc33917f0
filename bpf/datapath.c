//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The entry points of the packet path. They turn a hook's context into a struct packet and the
 * core's verdict into the hook's own; all else is under lib/.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>

#include <bpf/bpf_helpers.h>

#include "lib/config.h"
#include "lib/core.h"
#include "lib/meta.h"
#include "lib/parse.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Never read: an enum gets into BTF, and so into Go, only if a variable has its type. */
const enum verdict *unused_verdict __attribute__((unused));
const enum direction *unused_direction __attribute__((unused));
const enum table *unused_table __attribute__((unused));
const enum kind *unused_kind __attribute__((unused));
const enum protocol *unused_protocol __attribute__((unused));
const enum drop_reason *unused_drop_reason __attribute__((unused));
const enum policy_flag *unused_policy_flag __attribute__((unused));
const enum policy_action *unused_policy_action __attribute__((unused));
const enum flow_kind *unused_flow_kind __attribute__((unused));
const struct drop_event *unused_drop_event __attribute__((unused));
const struct flow *unused_flow __attribute__((unused));
const struct policy_prefix *unused_policy_prefix __attribute__((unused));
const enum slot_flag *unused_slot_flag __attribute__((unused));
const enum slot_number *unused_slot_number __attribute__((unused));
const enum pod_mode *unused_pod_mode __attribute__((unused));
const enum pod_flag *unused_pod_flag __attribute__((unused));
const enum endpoint_flag *unused_endpoint_flag __attribute__((unused));
const enum way *unused_way __attribute__((unused));
const enum direct_end *unused_direct_end __attribute__((unused));
const enum pod_limit *unused_pod_limit __attribute__((unused));
const enum program_entry *unused_program_entry __attribute__((unused));
const enum program_order *unused_program_order __attribute__((unused));

/* Returns the length of a frame, in bytes. */
static __always_inline __u32 xdp_len(struct xdp_md *ctx)
{
	return config_xdp_frags ? bpf_xdp_get_buff_len(ctx) : ctx->data_end - ctx->data;
}

/*
 * Parses and judges a frame at the XDP hook; walk is NULL but where user programs run. Returns
 * an XDP action. Headers past the first buffer cannot be read: on veth that buffer holds over 3 KiB
 * of any frame (veth_convert_skb_to_xdp_buff() in drivers/net/veth.c).
 */
static __always_inline int xdp_hook(struct xdp_md *ctx, struct walk *walk)
{
	struct packet pkt = {
		.data = (void *)(long)ctx->data,
		.data_end = (void *)(long)ctx->data_end,
		.packets = 1,
	};
	enum parse_result result;
	enum verdict verdict;

	pkt.len = xdp_len(ctx);
	result = parse(&pkt);
	/* read anew: what parsing proved of them differs by the way it took, to the verifier */
	barrier();
	pkt.data = (void *)(long)ctx->data;
	pkt.data_end = (void *)(long)ctx->data_end;
	verdict = core(&pkt, result, ctx->ingress_ifindex, DIRECTION_EGRESS, HOOK_XDP, walk);
	/* the core has told the kernel where to */
	if (config_redirect && pkt.direct && !redirect_rewrite_xdp(ctx))
		return XDP_ABORTED;
	return verdict;
}

/* Egress of a pod at the XDP hook of the host end, generic and native. Returns an XDP action. */
SEC("xdp.frags")
int xdp_egress(struct xdp_md *ctx)
{
	return xdp_hook(ctx, NULL);
}

/*
 * As xdp_egress(), for pods that have user programs: runs those before the policy, the policy,
 * and those after it. Returns an XDP action.
 */
SEC("xdp.frags")
int xdp_egress_programs(struct xdp_md *ctx)
{
	struct walk *walk = walk_scratch();
	const struct slot *slot;
	__u32 number, verdict;

	slot = pod_slot(ctx->ingress_ifindex, &number);
	if (!slot)
		return XDP_PASS;
	if (!walk)
		return XDP_ABORTED;
	walk->judged = 0;
	walk->undecided = 0;
	walk->decided = VERDICT_PASS;
	if (slot_programs(slot, SLOT_BEFORE))
		walk->decided = programs_walk(ctx, number, PROGRAM_BEFORE);
	verdict = program_run(ctx, config_redirect ? PROGRAM_JUDGE_REDIRECT : PROGRAM_JUDGE);
	if (!walk->judged) {
		/* programs before have used up the tail calls that a packet has */
		verdict = walk->decided == VERDICT_PASS ? VERDICT_ABORTED : walk->decided;
		core_conclude(number, DIRECTION_EGRESS, verdict, xdp_len(ctx), 1);
	} else if (verdict == VERDICT_PASS && walk->undecided) {
		verdict = programs_walk(ctx, number, PROGRAM_AFTER);
		core_conclude(number, DIRECTION_EGRESS, verdict, walk->len, 1);
	}
	/*
	 * What veth itself sends back lies in the pod's ring until somebody polls, unless the pod
	 * runs XDP: veth_xdp_flush() in drivers/net/veth.c asks for that (6.18), ndo_xdp_xmit() does
	 * not. Not so on socket buffers, of which a redirect is dropped where it is larger than the
	 * MTU, as GSO packets are (xdp_ok_fwd_dev() in include/linux/filter.h).
	 */
	if (verdict == VERDICT_TX && config_xdp_frags)
		return bpf_redirect(ctx->ingress_ifindex, 0);
	return verdict;
}

/* The policy as xdp_egress_programs() calls it. Returns an XDP action. */
SEC("xdp.frags")
int xdp_judge(struct xdp_md *ctx)
{
	struct walk *walk = walk_scratch();

	if (!walk)
		return XDP_ABORTED;
	walk->judged = 1;
	return xdp_hook(ctx, walk);
}

/*
 * Returns how many packets a socket buffer stands for. gso_segs is 0 where a pod made the GSO
 * packet itself with a virtio header (virtio_net_hdr_to_skb() in include/linux/virtio_net.h): then
 * its payload is divided, as qdisc_pkt_len_init() does (net/core/dev.c).
 */
static __always_inline __u32 skb_packets(const struct __sk_buff *skb, const struct packet *pkt)
{
	__u32 size = skb->gso_size;

	if (size == 0)
		return 1;
	if (skb->gso_segs != 0)
		return skb->gso_segs;
	if (pkt->payload_off >= pkt->len)
		return 1;
	return (pkt->len - pkt->payload_off + size - 1) / size;
}

/* Carries out the verdict about a socket buffer. Returns a TC_ACT_* or TCX_*. */
static __always_inline int skb_action(struct __sk_buff *skb, enum verdict verdict)
{
	const struct view *view;

	switch (verdict) {
	case VERDICT_PASS:
		/* also TCX_NEXT: programs of others, and then the stack, have their turn */
		return TC_ACT_UNSPEC;
	case VERDICT_REDIRECT:
		view = view_scratch();
		if (config_redirect && view && redirect_rewrite_skb(skb))
			return bpf_redirect_peer(view->target.ifindex, 0);
		return TC_ACT_SHOT;
	default:
		return TC_ACT_SHOT;
	}
}

/* Parses and judges a socket buffer at either tc hook. Returns a TC_ACT_* or TCX_*. */
static __always_inline int skb_hook(struct __sk_buff *skb, enum direction direction)
{
	struct packet pkt = {};
	enum parse_result result;
	bool pulled = false;

again:
	/* all of it again: what the first try proved of them is one more state to the verifier */
	pkt.len = skb->len;
	pkt.gso_size = skb->gso_size;
	/* skb_iif is set where a packet comes in, and not in one that the node makes */
	pkt.from_host = skb->ingress_ifindex == 0;
	pkt.data = (void *)(long)skb->data;
	pkt.data_end = (void *)(long)skb->data_end;
	result = parse(&pkt);
	/* copying is dear and seldom needed: the stack keeps its headers in the linear part */
	if (result == PARSE_NOT_LINEAR && !pulled) {
		__u32 want = skb->len;

		pulled = true;
		if (want > PACKET_MAX_HEADERS)
			want = PACKET_MAX_HEADERS;
		if (bpf_skb_pull_data(skb, want) == 0)
			goto again;
	}
	pkt.packets = skb_packets(skb, &pkt);
	/* as in xdp_egress() */
	barrier();
	pkt.data = (void *)(long)skb->data;
	pkt.data_end = (void *)(long)skb->data_end;
	return skb_action(skb, core(&pkt, result, skb->ifindex, direction, HOOK_TC, NULL));
}

/* Egress of a pod at tc ingress of the host end. Returns a TC_ACT_* or TCX_*. */
SEC("tc")
int tc_egress(struct __sk_buff *skb)
{
	return skb_hook(skb, DIRECTION_EGRESS);
}

/* Ingress of a pod at tc egress of the host end. Returns a TC_ACT_* or TCX_*. */
SEC("tc")
int tc_ingress(struct __sk_buff *skb)
{
	return skb_hook(skb, DIRECTION_INGRESS);
}
