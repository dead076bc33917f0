/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include <linux/in.h>
#include <linux/types.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "clock.h"
#include "drop.h"
#include "flow.h"
#include "policy.h"
#include "pod.h"
#include "stats.h"
#include "verdict.h"
#include "view.h"

/* Flags in byte 13 of a TCP header (RFC 9293, 3.1). */
#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

static __always_inline bool filter_same_mac(const __u8 *a, const __u8 *b)
{
	__u16 difference = 0;

	for (int i = 0; i < 6; i++)
		difference |= a[i] ^ b[i];
	return difference == 0;
}

static __always_inline bool filter_is_zero(const __u8 *address, int from)
{
	__u8 bits = 0;

	for (int i = from; i < 16; i++)
		bits |= address[i];
	return bits == 0;
}

/*
 * Whether a packet without a source of its own looks for one: DHCP (RFC 2131), and duplicate
 * address detection with what goes with it (RFC 4862, 5.4).
 */
static __always_inline bool filter_is_unspecified(const struct view *view)
{
	const struct flow_key *key = &view->key;

	if (filter_is_zero(key->local, 0))
		return key->protocol == IPPROTO_ICMPV6 &&
		       (view->icmp_type == ICMPV6_NEIGHBOUR_SOLICIT ||
			view->icmp_type == ICMPV6_ROUTER_SOLICIT ||
			view->icmp_type == ICMPV6_MLD_REPORT ||
			view->icmp_type == ICMPV6_MLD_DONE ||
			view->icmp_type == ICMPV6_MLD2_REPORT);
	return key->local[10] == 0xff && key->local[11] == 0xff && filter_is_zero(key->local, 12) &&
	       key->protocol == IPPROTO_UDP && key->local_port == bpf_htons(68) &&
	       key->remote_port == bpf_htons(67);
}

/* Whether a packet from the pod has or claims the MAC, or claims an address, of another. */
static __always_inline bool filter_is_spoofed(const struct view *view, const struct policy *policy,
					      __u32 place)
{
	if (!filter_same_mac(view->source_mac, policy->mac))
		return true;
	if (view->flags & VIEW_CLAIM_BAD)
		return true;
	if ((view->flags & VIEW_CLAIM_MAC) && !filter_same_mac(view->claim_mac, policy->mac))
		return true;
	return (view->flags & VIEW_CLAIM) && !policy_owns(place, true);
}

/*
 * Whether an IP packet from the pod has another's source. A packet of a flow need not be asked:
 * the flow's first one was.
 */
static __always_inline bool filter_has_foreign_source(const struct view *view, __u32 place)
{
	return !filter_is_unspecified(view) && !policy_owns(place, false);
}

/* Notes a packet of a flow that passes. */
static __always_inline void filter_refresh(struct flow *flow, const struct view *view,
					   enum direction direction, __u64 now)
{
	/* written seldom, so that two CPUs do not take turns at its cache line */
	if (now - flow->seen > CLOCK_SECOND)
		flow->seen = now;
	if (!(flow->sent & 1 << direction))
		flow->sent |= 1 << direction;
	if (view->key.protocol != IPPROTO_TCP || !(view->tcp_flags & (TCP_FIN | TCP_RST)))
		return;
	if (view->tcp_flags & TCP_RST) {
		flow->ends = now;
	} else {
		flow->fin |= 1 << direction;
		if (flow->fin == FLOW_BOTH && !flow->ends)
			flow->ends = now + FLOW_TCP_CLOSING * CLOCK_SECOND;
	}
}

/* Enters a flow whose first packet passed. */
static __always_inline void filter_begin(void *flows, const struct policy *policy,
					 const struct view *view, enum direction direction,
					 __u64 now)
{
	struct flow flow = {
		.seen = now,
		.generation = policy->generation,
		.initiator = direction,
		.sent = 1 << direction,
		.port = view->port,
	};

	if (view->key.protocol == IPPROTO_TCP) {
		/* the RST of a connection that nobody knows begins none */
		if (view->tcp_flags & TCP_RST)
			return;
		if (view->tcp_flags & TCP_FIN)
			flow.fin = 1 << direction;
	}
	bpf_map_update_elem(flows, &view->key, &flow, BPF_ANY);
}

/* Makes the key of a fragmented datagram of a view's key. */
static __always_inline void filter_fragment_key(const struct view *view, enum direction direction,
						struct flow_key *key)
{
	*key = view->key;
	key->kind = FLOW_FRAGMENTS_EGRESS + direction;
	__builtin_memcpy(&key->remote_port, &view->fragment_id, 4);
}

/* Asks the rules, and the default if none matches; sets the decision. */
static __always_inline void filter_rules(const struct policy *policy, __u32 place, __u32 direction,
					 __u16 port, bool portless, struct decision *decision)
{
	__u64 rule = policy_match(place, direction, port, portless);
	__u32 action;

	if (rule == POLICY_NO_RULE) {
		action = policy->direction[direction & 1].action;
		decision->reason = action == POLICY_DENY ? DROP_DEFAULT : DROP_NONE;
		return;
	}
	if (portless && (rule & POLICY_RULE_HAS_PORT)) {
		decision->reason = DROP_FRAGMENT;
		return;
	}
	action = rule & POLICY_RULE_ACTION;
	decision->rule = rule >> POLICY_RULE_NUMBER;
	decision->matched = 1;
	decision->audit = action == POLICY_AUDIT;
	decision->reason = action == POLICY_DENY ? DROP_RULE : DROP_NONE;
}

/* Judges an IP packet that is not spoofed and not neighbour discovery. */
static __always_inline void filter_judge(const struct view *view, const struct policy *policy,
					 void *flows, __u32 place, enum direction direction,
					 struct decision *decision)
{
	bool trusted = (view->flags & VIEW_FROM_HOST) && (policy->flags & POLICY_ALLOW_HOST);
	bool stateful = policy->flags & POLICY_STATEFUL;
	__u64 now = decision->now;
	enum direction asked = direction;
	__u16 port = view->port;
	bool guarded = direction == DIRECTION_EGRESS && (policy->flags & POLICY_ANTI_SPOOF);
	struct flow *flow = NULL;
	struct flow_key key;

	if (view->flags & VIEW_LATER_FRAGMENT) {
		if (trusted)
			return;
		filter_fragment_key(view, direction, &key);
		flow = bpf_map_lookup_elem(flows, &key);
		if (flow && flow_live(&key, flow, now)) {
			decision->reason = flow->drop;
			return;
		}
		if (guarded && filter_has_foreign_source(view, place)) {
			decision->reason = DROP_SPOOF;
			return;
		}
		filter_rules(policy, place, asked, port, true, decision);
		return;
	}
	if (stateful && (view->flags & VIEW_QUOTE) && !trusted &&
	    !(guarded && filter_has_foreign_source(view, place))) {
		flow = bpf_map_lookup_elem(flows, &view->quote);
		if (flow && flow_live(&view->quote, flow, now))
			return;
		flow = NULL;
	}
	/* an opening of a TCP connection is the rules' to judge, whatever was at its ports */
	if (stateful && (view->key.protocol != IPPROTO_TCP ||
			 (view->tcp_flags & (TCP_SYN | TCP_ACK)) != TCP_SYN)) {
		flow = bpf_map_lookup_elem(flows, &view->key);
		if (flow && !flow_live(&view->key, flow, now))
			flow = NULL;
		if (flow && (flow->generation == policy->generation || trusted)) {
			filter_refresh(flow, view, direction, now);
			return;
		}
		if (flow) {
			asked = flow->initiator & 1;
			port = flow->port;
		}
	}
	if (!flow && guarded && filter_has_foreign_source(view, place)) {
		decision->reason = DROP_SPOOF;
		return;
	}
	if (!trusted)
		filter_rules(policy, place, asked, port, false, decision);
	if (!stateful)
		return;
	if (!flow) {
		if (decision->reason == DROP_NONE)
			filter_begin(flows, policy, view, direction, now);
	} else if (decision->reason == DROP_NONE) {
		flow->generation = policy->generation;
		filter_refresh(flow, view, direction, now);
	} else {
		bpf_map_delete_elem(flows, &view->key);
	}
}

/* Decides about a packet of a pod with a policy. */
static __always_inline void filter_decide(const struct view *view, const struct policy *policy,
					  void *flows, __u32 place, enum direction direction,
					  struct decision *decision)
{
	if (view->flags & VIEW_BROKEN) {
		decision->reason = DROP_MALFORMED;
		return;
	}
	if (direction == DIRECTION_EGRESS && (policy->flags & POLICY_ANTI_SPOOF) &&
	    filter_is_spoofed(view, policy, place)) {
		decision->reason = DROP_SPOOF;
		return;
	}
	if ((view->flags & VIEW_ND) && direction == DIRECTION_EGRESS &&
	    (policy->flags & POLICY_ANTI_SPOOF) && filter_has_foreign_source(view, place))
		decision->reason = DROP_SPOOF;
	if (view->flags & (VIEW_ARP | VIEW_ND))
		return;
	if (!(view->flags & VIEW_IP)) {
		if (policy->direction[direction & 1].action == POLICY_DENY)
			decision->reason = DROP_DEFAULT;
		return;
	}
	filter_judge(view, policy, flows, place, direction, decision);
	if (view->flags & VIEW_FIRST_FRAGMENT) {
		struct flow note = {.seen = decision->now, .drop = decision->reason};
		struct flow_key key;

		filter_fragment_key(view, direction, &key);
		bpf_map_update_elem(flows, &key, &note, BPF_ANY);
	}
}

/* Tells of a packet that was dropped, or would have been, if there is room and time. */
static __always_inline void filter_tell(const struct view *view, const struct policy *policy,
					__u32 ifindex, enum direction direction,
					const struct decision *decision)
{
	bool from_pod = direction == DIRECTION_EGRESS;
	struct drop_event *event;

	if (!drop_may_tell(decision->now))
		return;
	event = bpf_ringbuf_reserve(&drop_events, sizeof(*event), 0);
	if (!event)
		return;
	__builtin_memset(event, 0, sizeof(*event));
	event->time = decision->now;
	event->ifindex = ifindex;
	event->rule = decision->rule;
	event->generation = policy->generation;
	event->len = view->len;
	__builtin_memcpy(event->source, from_pod ? view->key.local : view->key.remote, 16);
	__builtin_memcpy(event->destination, from_pod ? view->key.remote : view->key.local, 16);
	event->source_port = from_pod ? view->key.local_port : view->key.remote_port;
	event->destination_port = from_pod ? view->key.remote_port : view->key.local_port;
	event->ethertype = view->ethertype;
	event->protocol = view->key.protocol;
	event->direction = direction;
	event->reason = decision->audit ? DROP_RULE : decision->reason;
	event->audit = decision->audit;
	bpf_ringbuf_submit(event, 0);
}

/*
 * Judges the packet in the CPU's view, of the pod in slot number with slot_flags, counts what
 * decided and tells of what it drops. Returns VERDICT_PASS or VERDICT_DROP; where the policy or
 * the flows are missing it is VERDICT_DROP. Global, with numbers for arguments: the verifier
 * walks it once, and not for each way that leads to it.
 */
__attribute__((noinline)) int filter(__u32 number, __u32 slot_flags, __u32 ifindex, __u32 direction)
{
	__u32 place = number * POLICY_PLACES + !!(slot_flags & SLOT_POLICY);
	struct decision decision = {.now = clock_now()};
	struct packet sizes = {};
	struct policy *policy;
	struct view *view;
	void *flows;

	view = view_scratch();
	policy = bpf_map_lookup_elem(&policies, &place);
	flows = bpf_map_lookup_elem(&pod_flows, &number);
	if (!view || !policy || !flows)
		return VERDICT_DROP;
	direction &= 1;
	filter_decide(view, policy, flows, place, direction, &decision);
	sizes.len = view->len;
	sizes.packets = view->packets;
	if (decision.matched)
		policy_count(policy, place, decision.rule, decision.now, &sizes);
	if (decision.reason != DROP_NONE)
		stats_count(number, direction, TABLE_DROP, decision.reason - 1, &sizes);
	if (decision.reason != DROP_NONE || decision.audit)
		filter_tell(view, policy, ifindex, direction, &decision);
	return decision.reason == DROP_NONE ? VERDICT_PASS : VERDICT_DROP;
}
