/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include <linux/in.h>
#include <linux/types.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "clock.h"
#include "drop.h"
#include "flow.h"
#include "icmp.h"
#include "neighbour.h"
#include "policy.h"
#include "pod.h"
#include "stats.h"
#include "transport.h"
#include "verdict.h"
#include "view.h"

/*
 * Whether the packet in the CPU's view has no source and looks for one: DHCP (RFC 2131), and
 * duplicate address detection with what goes with it (RFC 4861, 4.1 and 4.3; RFC 3590). Global, as
 * what follows: the verifier walks each once.
 */
__attribute__((noinline)) int filter_is_unspecified(void)
{
	const struct view *view = view_scratch();
	const struct flow_key *key;

	if (!view)
		return false;
	key = &view->key;
	if (view->ethertype == ETH_P_IPV6)
		return neighbour_from_nowhere(view) &&
		       (view->icmp_type == ICMPV6_NEIGHBOUR_SOLICIT ||
			view->icmp_type == ICMPV6_ROUTER_SOLICIT ||
			view->icmp_type == ICMPV6_MLD_REPORT ||
			view->icmp_type == ICMPV6_MLD_DONE ||
			view->icmp_type == ICMPV6_MLD2_REPORT);
	return !(key->local[12] | key->local[13] | key->local[14] | key->local[15]) &&
	       key->protocol == IPPROTO_UDP && key->local_port == bpf_htons(68) &&
	       key->remote_port == bpf_htons(67);
}

/*
 * Whether the packet in the CPU's view, from the pod whose policy is at place, has or claims the MAC,
 * or claims an address, of another.
 */
__attribute__((noinline)) int filter_is_spoofed(__u32 place)
{
	const struct policy *policy = bpf_map_lookup_elem(&policies, &place);
	const struct view *view = view_scratch();

	if (!view || !policy || view_mac_differs(view->source_mac, policy->mac) ||
	    (view->flags & (VIEW_FALSE | VIEW_OTHER_MAC)))
		return true;
	return (view->flags & VIEW_CLAIM) && !policy_owns(place, true);
}

/*
 * Returns the flow of the packet in view if it is to be judged by its flow: NULL if it has none,
 * or none that lives. The opening of a TCP connection is the rules' to judge, whatever was at its
 * ports.
 */
static __always_inline struct flow *filter_flow(const struct view *view, void *flows, __u64 now)
{
	struct flow *flow;

	if (view->flags & (VIEW_LATER_FRAGMENT | VIEW_NO_FLOW | VIEW_NEIGHBOUR))
		return NULL;
	if (view->key.protocol == IPPROTO_TCP && (view->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN)
		return NULL;
	flow = bpf_map_lookup_elem(flows, &view->key);
	return flow && flow_live(&view->key, flow, now) ? flow : NULL;
}

/* Notes a packet of a flow that passes. */
static __always_inline void filter_refresh(struct flow *flow, void *flows, const struct view *view,
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
		bpf_map_delete_elem(flows, &view->key);
		return;
	}
	flow->fin |= 1 << direction;
	if (flow->fin == FLOW_BOTH && !flow->ends)
		flow->ends = now + FLOW_TCP_CLOSING * CLOCK_SECOND;
}

/* Enters a flow whose first packet passed; flags are enum flow_flag. */
static __always_inline void filter_begin(void *flows, const struct policy *policy,
					 const struct view *view, enum direction direction,
					 __u8 flags, __u64 now)
{
	struct flow flow = {
		.seen = now,
		.generation = policy->generation,
		.port = view->port,
		.initiator = direction,
		.sent = 1 << direction,
		.flags = flags,
	};

	if (view->key.protocol == IPPROTO_TCP) {
		/* a reset ends what was at its ports, and begins nothing */
		if (view->tcp_flags & TCP_RST) {
			bpf_map_delete_elem(flows, &view->key);
			return;
		}
		if (view->tcp_flags & TCP_FIN)
			flow.fin = 1 << direction;
	}
	bpf_map_update_elem(flows, &view->key, &flow, BPF_ANY);
}

/*
 * Returns the key of the fragmented datagram that the packet in view is a part of, made in view:
 * older kernels have no stack left for it. In IPv6 a later fragment names the extension header
 * that comes first, and not the protocol (RFC 8200, 4.5).
 */
static __always_inline struct flow_key *filter_datagram(struct view *view, enum direction direction)
{
	struct flow_key *key = &view->datagram;

	*key = view->key;
	key->kind = FLOW_FRAGMENTS_EGRESS + direction;
	if (view->ethertype == ETH_P_IPV6)
		key->protocol = 0;
	__builtin_memcpy(&key->remote_port, &view->fragment_id, 4);
	return key;
}

/* Asks the rules, and the default if none matches; sets the decision. */
static __always_inline void filter_rules(const struct policy *policy, __u32 place, __u32 direction,
					 __u16 port, bool portless, struct decision *decision)
{
	__u64 rule = policy_match(place, direction, port, portless);
	__u32 action;

	if (rule == POLICY_BROKEN) {
		decision->reason = DROP_DEFAULT;
		return;
	}
	if (rule == POLICY_NO_RULE) {
		action = policy->direction[direction & 1].action;
		decision->reason = action == POLICY_DENY ? DROP_DEFAULT : DROP_NONE;
		return;
	}
	decision->rule = rule >> POLICY_RULE_NUMBER;
	decision->matched = 1;
	if (portless && (rule & POLICY_RULE_HAS_PORT)) {
		decision->reason = DROP_FRAGMENT;
		return;
	}
	action = rule & POLICY_RULE_ACTION;
	decision->audit = action == POLICY_AUDIT;
	decision->reason = action == POLICY_DENY ? DROP_RULE : DROP_NONE;
}

/* Judges a later fragment by its first one, or, if that is not known, by the rules. */
static __always_inline void filter_later_fragment(struct view *view, const struct policy *policy,
						  void *flows, __u32 place,
						  enum direction direction,
						  struct decision *decision)
{
	const struct flow_key *key = filter_datagram(view, direction);
	struct flow *first;

	first = bpf_map_lookup_elem(flows, key);
	if (!first || !flow_live(key, first, decision->now)) {
		filter_rules(policy, place, direction, 0, true, decision);
		return;
	}
	/* the rules of another policy have other numbers */
	if (first->rule && first->generation == policy->generation) {
		decision->matched = 1;
		decision->rule = first->rule - 1;
		decision->audit = !!(first->flags & FLOW_AUDIT);
	}
}

/*
 * Notes the decision on a first fragment for the later ones. One that was dropped is not noted:
 * what nobody lets through is not to fill the table, and the rules, asked without ports, drop what
 * belongs to it.
 */
static __always_inline void filter_first_fragment(struct view *view, const struct policy *policy,
						  void *flows, enum direction direction,
						  const struct decision *decision)
{
	struct flow note = {
		.seen = decision->now,
		.generation = policy->generation,
		.rule = decision->matched ? decision->rule + 1 : 0,
		.flags = decision->audit ? FLOW_AUDIT : 0,
	};
	const struct flow_key *key = filter_datagram(view, direction);

	if (decision->reason == DROP_NONE)
		bpf_map_update_elem(flows, key, &note, BPF_ANY);
	else
		bpf_map_delete_elem(flows, key);
}

/*
 * Judges an IP packet by the flow it belongs to, NULL for none, and by the rules; enters in the
 * flows what passes. owned: its local address is known to be the pod's.
 */
static __always_inline void filter_judge(struct view *view, const struct policy *policy,
					 void *flows, struct flow *flow, __u32 place,
					 enum direction direction, bool owned,
					 struct decision *decision)
{
	bool trusted = direction == DIRECTION_INGRESS && (view->flags & VIEW_FROM_HOST) &&
		       (policy->flags & POLICY_ALLOW_HOST);
	bool stateful = policy->flags & POLICY_STATEFUL;
	__u64 now = decision->now;
	__u8 flags = owned ? FLOW_OWNED : 0;

	if (view->flags & VIEW_NEIGHBOUR)
		return;
	if (!trusted && (view->flags & VIEW_LATER_FRAGMENT)) {
		filter_later_fragment(view, policy, flows, place, direction, decision);
		return;
	}
	if (trusted) {
		flags |= FLOW_BY_HOST;
	} else {
		if (stateful && (view->flags & VIEW_QUOTE)) {
			const struct flow *about = bpf_map_lookup_elem(flows, &view->quote);

			if (about && flow_live(&view->quote, about, now))
				return;
		}
		if (!flow) {
			filter_rules(policy, place, direction, view->port, false, decision);
		} else if (flow->generation != policy->generation) {
			/* what the node began is not the rules' to judge, as long as it may */
			if (!(flow->flags & FLOW_BY_HOST) || !(policy->flags & POLICY_ALLOW_HOST))
				filter_rules(policy, place, flow->initiator & 1, flow->port, false,
					     decision);
			if (decision->reason != DROP_NONE) {
				bpf_map_delete_elem(flows, &view->key);
			} else {
				flow->flags = (flow->flags & ~FLOW_OWNED) | flags;
				flow->generation = policy->generation;
			}
		}
	}
	if (!stateful || decision->reason != DROP_NONE ||
	    (view->flags & (VIEW_LATER_FRAGMENT | VIEW_NO_FLOW)))
		return;
	if (flow)
		filter_refresh(flow, flows, view, direction, now);
	else
		filter_begin(flows, policy, view, direction, flags, now);
}

/* Decides about a packet of a pod with a policy. */
static __always_inline void filter_decide(struct view *view, const struct policy *policy,
					  void *flows, __u32 place, enum direction direction,
					  struct decision *decision)
{
	bool guarded = direction == DIRECTION_EGRESS && (policy->flags & POLICY_ANTI_SPOOF);
	struct flow *flow = NULL;
	bool owned = false;

	if (view->flags & VIEW_BROKEN) {
		decision->reason = DROP_MALFORMED;
		return;
	}
	if (guarded && filter_is_spoofed(place)) {
		decision->reason = DROP_SPOOF;
		return;
	}
	if (view->flags & VIEW_ARP)
		return;
	if (!(view->flags & VIEW_IP)) {
		if (policy->direction[direction & 1].action == POLICY_DENY)
			decision->reason = DROP_DEFAULT;
		return;
	}
	if (policy->flags & POLICY_STATEFUL)
		flow = filter_flow(view, flows, decision->now);
	if (guarded) {
		bool current = flow && flow->generation == policy->generation;

		/* a flow is asked once, so that its packets need not be */
		owned = current && (flow->flags & FLOW_OWNED);
		if (!owned) {
			owned = policy_owns(place, false);
			if (owned && current)
				flow->flags |= FLOW_OWNED;
		}
		if (!owned && !filter_is_unspecified()) {
			decision->reason = DROP_SPOOF;
			return;
		}
	}
	filter_judge(view, policy, flows, flow, place, direction, owned, decision);
	if (view->flags & VIEW_FIRST_FRAGMENT)
		filter_first_fragment(view, policy, flows, direction, decision);
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
	event->rule = decision->matched ? decision->rule : DROP_NO_RULE;
	event->generation = policy->generation;
	event->len = view->len;
	__builtin_memcpy(event->source, from_pod ? view->key.local : view->key.remote, 16);
	__builtin_memcpy(event->destination, from_pod ? view->key.remote : view->key.local, 16);
	event->source_port = from_pod ? view->key.local_port : view->key.remote_port;
	event->destination_port = from_pod ? view->key.remote_port : view->key.local_port;
	if (icmp_is(view->key.protocol)) {
		event->source_port = 0;
		event->destination_port = bpf_htons(view->port);
	}
	event->ethertype = view->ethertype;
	event->protocol = view->key.protocol;
	event->direction = direction;
	event->reason = decision->audit ? DROP_RULE : decision->reason;
	event->audit = decision->audit;
	bpf_ringbuf_submit(event, 0);
}

/*
 * Judges the packet in view, counts what decided and tells of what it drops; sizes are those of
 * the packet. Where the policy or the flows are missing it is VERDICT_DROP.
 */
static __always_inline enum verdict filter_run(struct view *view, const struct packet *sizes,
					       __u32 number, __u32 slot_flags, __u32 ifindex,
					       enum direction direction)
{
	__u32 place = number * POLICY_PLACES + !!(slot_flags & SLOT_POLICY);
	struct decision *decision = &view->decision;
	struct policy *policy;
	__u8 reason;
	void *flows;

	policy = bpf_map_lookup_elem(&policies, &place);
	flows = bpf_map_lookup_elem(&pod_flows, &number);
	if (!policy || policy->generation == 0 || !flows)
		return VERDICT_DROP;
	__builtin_memset(decision, 0, sizeof(*decision));
	decision->now = clock_now();
	filter_decide(view, policy, flows, place, direction, decision);
	if (decision->matched)
		policy_count(policy, place, decision->rule, decision->now, sizes);
	reason = decision->reason;
	if (reason != DROP_NONE)
		stats_count(number, direction, TABLE_DROP, reason - 1, sizes);
	if (reason != DROP_NONE || decision->audit)
		filter_tell(view, policy, ifindex, direction, decision);
	return reason == DROP_NONE ? VERDICT_PASS : VERDICT_DROP;
}

/*
 * Judges the packet in the CPU's view, of the pod in slot number with slot_flags. Returns
 * VERDICT_PASS or VERDICT_DROP. Global, with numbers for arguments: the verifier
 * walks it once, and not for each way that leads to it.
 */
__attribute__((noinline)) int filter(__u32 number, __u32 slot_flags, __u32 ifindex, __u32 direction)
{
	struct view *view = view_scratch();
	struct packet sizes = {};

	if (!view)
		return VERDICT_DROP;
	direction &= 1;
	sizes.len = view->len;
	sizes.packets = view->packets;
	return filter_run(view, &sizes, number, slot_flags, ifindex, direction);
}
