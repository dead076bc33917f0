/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include "config.h"
#include "fill.h"
#include "filter.h"
#include "packet.h"
#include "peers.h"
#include "pod.h"
#include "programs.h"
#include "redirect.h"
#include "stats.h"
#include "verdict.h"
#include "view.h"

/* By what a hook hands packets to another interface. */
enum hook {
	HOOK_XDP, /* tx_ports */
	HOOK_TC,  /* bpf_redirect_peer() */
};

/* Counts a packet of the pod in slot number, with slot_flags, by what it is. */
static __always_inline void core_count(const struct packet *pkt, enum parse_result result,
				       __u32 number, __u32 slot_flags, enum direction direction)
{
	stats_count(number, direction, TABLE_KIND, stats_kind(result, pkt), pkt);
	if (result == PARSE_OK) {
		stats_count(number, direction, TABLE_PROTOCOL, pkt->protocol, pkt);
		if (slot_flags & SLOT_PEERS)
			peers_count(number, direction, pkt);
	}
}

/*
 * Counts a packet of len bytes, or the packets that it stands for, by verdict. Global: the
 * verifier walks it once, and not for each way that leads to it.
 */
__attribute__((noinline)) int core_conclude(__u32 number, __u32 direction, __u32 verdict, __u32 len,
					    __u32 packets)
{
	struct packet sizes = {.len = len, .packets = packets};

	stats_count(number, direction & 1, TABLE_VERDICT, verdict, &sizes);
	return 0;
}

/*
 * Hands a packet that the pod in slot number sends, and may send, to the pod that it is for, if it
 * need not go by the stack: judges it for that pod, and counts it there. Returns VERDICT_REDIRECT,
 * VERDICT_PASS for the stack, or VERDICT_DROP where the other pod's filter says so; *counted is
 * what the sender counts.
 */
static __always_inline enum verdict core_redirect(const struct packet *pkt, __u32 number,
						  enum hook hook, enum verdict *counted)
{
	enum verdict verdict = VERDICT_PASS;
	__u32 target, flags, ifindex;
	struct view *view;

	if (redirect_way(number) != WAY_DIRECT)
		return VERDICT_PASS;
	view = view_scratch();
	if (!view)
		return VERDICT_PASS;
	target = view->target.slot;
	flags = view->target_flags;
	ifindex = view->target.ifindex;
	/* it is not there if the interface is going: asked before anything is counted */
	if (hook == HOOK_XDP && bpf_redirect_map(&tx_ports, ifindex, XDP_PASS) != XDP_REDIRECT)
		return VERDICT_PASS;
	*counted = VERDICT_REDIRECT;
	core_count(pkt, PARSE_OK, target, flags, DIRECTION_INGRESS);
	if (flags & SLOT_FILTER) {
		redirect_turn(view);
		verdict = filter(target, flags, ifindex, DIRECTION_INGRESS);
	}
	core_conclude(target, DIRECTION_INGRESS, verdict, pkt->len, pkt->packets);
	return verdict == VERDICT_PASS ? VERDICT_REDIRECT : VERDICT_DROP;
}

/*
 * The walk of one parsed packet, the same for every hook and direction: finds the pod whose host
 * end is ifindex, decides, counts. An interface that is no pod's passes everything uncounted: it
 * is on its way in or out. For VERDICT_REDIRECT the CPU's view says where to, if pkt->direct.
 *
 * walk is NULL but where user programs run. What those before our policy decided about is only
 * counted; what those after it are yet to decide about is left for xdp_egress_programs() to count.
 */
static __always_inline enum verdict core(struct packet *pkt, enum parse_result result,
					 __u32 ifindex, enum direction direction, enum hook hook,
					 struct walk *walk)
{
	enum verdict verdict = VERDICT_PASS, counted;
	__u32 number, flags;
	struct slot *slot;

	slot = pod_slot(ifindex, &number);
	if (!slot)
		return VERDICT_PASS;
	flags = slot->flags;
	if (!config_redirect)
		flags &= ~SLOT_REDIRECT;
	core_count(pkt, result, number, flags, direction);
	if (walk && walk->decided != VERDICT_PASS) {
		core_conclude(number, direction, walk->decided, pkt->len, pkt->packets);
		return walk->decided;
	}
	if (flags & (SLOT_FILTER | SLOT_REDIRECT))
		fill_view(pkt, result, direction);
	if (flags & SLOT_FILTER)
		verdict = filter(number, flags, ifindex, direction);
	counted = verdict;
	if (config_redirect && (flags & SLOT_REDIRECT) && verdict == VERDICT_PASS) {
		if (direction == DIRECTION_INGRESS)
			redirect_delivered(number);
		else
			verdict = core_redirect(pkt, number, hook, &counted);
		pkt->direct = verdict == VERDICT_REDIRECT;
	}
	if (walk && verdict == VERDICT_PASS && slot_programs(slot, SLOT_AFTER)) {
		walk->len = pkt->len;
		walk->undecided = 1;
		return VERDICT_PASS;
	}
	core_conclude(number, direction, counted, pkt->len, pkt->packets);
	return verdict;
}
