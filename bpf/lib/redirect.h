/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include <stdbool.h>

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/types.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "clock.h"
#include "config.h"
#include "direct.h"
#include "endpoint.h"
#include "pod.h"
#include "transport.h"
#include "verdict.h"
#include "view.h"

/*
 * From pod to pod of a node without its stack. What the stack might do otherwise goes by the
 * stack; and so does the beginning of every flow, which shows whether it does.
 */

/* The way of a packet that a pod sends: direct, or by the stack, because. */
enum way {
	WAY_DIRECT,
	WAY_SPECIAL,  /* it is not VIEW_PLAIN */
	WAY_STRANGER, /* no pod of its network on this node has the address */
	WAY_MODES,    /* the modes of the two do not go together: see endpoint_pairs() */
	WAY_LINK,     /* it is neither for the target's MAC on the same bridge nor for the router */
	WAY_LONG,     /* longer than the target's MTU */
	WAY_LAST_HOP, /* its TTL or hop limit ends here, which the router is to say */
	WAY_UNKNOWN,  /* whether its flow is translated is not known, or it is */
	WAY_PROGRAMS, /* user programs run on it after the policy, and may have changed it */
};

/* Where XDP programs redirect to: the host ends of all targets, by their ifindex. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP_HASH);
	__uint(max_entries, MAX_PODS);
	/* with the types of key and value it would take 20 ms to load (6.18) */
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} tx_ports SEC(".maps");

/* Part of an address that is compared, or moved, at once. */
typedef __u64 __attribute__((may_alias)) redirect_word;

/* Returns which end of its flow the pod is whose packet is in view, after making the flow's key. */
static __always_inline enum direct_end redirect_key(struct view *view, __u64 network)
{
	const redirect_word *local = (const redirect_word *)view->key.local;
	const redirect_word *remote = (const redirect_word *)view->key.remote;
	struct direct_key *key = &view->direct;
	bool low = local[0] != remote[0] ? local[0] < remote[0] : local[1] < remote[1];

	key->network = network;
	__builtin_memcpy(key->low, low ? local : remote, 16);
	__builtin_memcpy(key->high, low ? remote : local, 16);
	key->low_port = low ? view->key.local_port : view->key.remote_port;
	key->high_port = low ? view->key.remote_port : view->key.local_port;
	key->protocol = view->key.protocol;
	return low ? DIRECT_LOW : DIRECT_HIGH;
}

/* Returns the pod with an address among those of network, NULL if there is none. */
static __always_inline struct endpoint *redirect_find(const __u8 *address, __u64 network)
{
	struct endpoint_key key = {.network = network};

	__builtin_memcpy(key.address, address, sizeof(key.address));
	return bpf_map_lookup_elem(&endpoints, &key);
}

/* Whether a TCP packet opens a connection (SYN) or answers that (SYN and ACK). */
static __always_inline bool redirect_opens(const struct view *view)
{
	return (view->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

/*
 * Notes a packet in view that the pod at end gives to the stack, of a flow with target; flow is
 * what is known of it, NULL for nothing.
 */
static __always_inline void redirect_sent(struct view *view, struct direct_flow *flow,
					  const struct slot *slot, enum direct_end end, __u64 now)
{
	struct direct_flow *begin = &view->begin;
	const struct endpoint *source;

	if (view->key.protocol == IPPROTO_TCP) {
		if (!(view->tcp_flags & TCP_SYN))
			return;
		if (!redirect_opens(view)) {
			if (flow) {
				flow->sent[end & 1] = 1;
				if (flow->opener != end)
					flow->answer_sent = view->sequence;
			}
			return;
		}
		if (flow && flow->opener == end && flow->syn_sent == view->sequence)
			return;
	} else if (flow) {
		__sync_fetch_and_add(&flow->sent[end & 1], view->packets);
		flow->seen = now;
		return;
	}
	/* who sends with another's address is not to spoil what is known of the other's flows */
	source = redirect_find(view->key.local, slot->self.network);
	if (!source || source->owner != slot->self.owner)
		return;
	__builtin_memset(begin, 0, sizeof(*begin));
	begin->seen = now;
	begin->owner[end & 1] = slot->self.owner;
	begin->owner[!end] = view->target.owner;
	begin->sent[end & 1] = view->packets;
	if (view->key.protocol == IPPROTO_TCP) {
		begin->syn_sent = view->sequence;
		begin->syn_delivered = ~view->sequence;
		begin->opener = end;
	}
	bpf_map_update_elem(&direct_flows, &view->direct, begin, BPF_ANY);
}

/* Whether two addresses and their ports are the same. */
static __always_inline bool redirect_same(const __u8 *one, __be16 one_port, const __u8 *other,
					  __be16 other_port)
{
	const redirect_word *a = (const redirect_word *)one, *b = (const redirect_word *)other;

	return a[0] == b[0] && a[1] == b[1] && one_port == other_port;
}

/*
 * Whether the packet in view, which the stack brought, is what a pod sent last on this CPU, but
 * for where to: translated. The stack brings a packet to the other pod before this CPU takes the
 * next one, mostly. Behind native XDP, which sees a batch before any of it is brought, it does not:
 * what those pods send is not noted.
 */
static __always_inline bool redirect_is_other(const struct view *view)
{
	const struct flow_key *sent = &view->sent, *came = &view->key;

	if (sent->protocol != came->protocol)
		return false;
	return redirect_same(sent->local, sent->local_port, came->remote, came->remote_port) &&
	       !redirect_same(sent->remote, sent->remote_port, came->local, came->local_port);
}

/*
 * Notes a packet in view, other than TCP, that the stack brought to the pod in slot from sender;
 * flow is what is known of its flow, NULL for nothing. What was not sent by its sender under these
 * addresses is translated, and all that comes under them is suspect then: a pod may use one port
 * for a service and for the pod behind it.
 */
static __always_inline void redirect_count(struct view *view, struct direct_flow *flow,
					   const struct slot *slot, enum direct_end sender)
{
	struct direct_flow suspect = {.tainted = true};
	const struct endpoint *source, *own;
	__u64 now = clock_now();

	if (flow && direct_live(flow, view->key.protocol, now)) {
		__sync_fetch_and_add(&flow->delivered[sender & 1], view->packets);
		flow->seen = now;
		if (flow->delivered[sender & 1] > flow->sent[sender & 1] || redirect_is_other(view))
			flow->tainted = true;
		return;
	}
	/* a bridge floods what is for others, too */
	own = redirect_find(view->key.local, slot->self.network);
	if (!own || own->owner != slot->self.owner)
		return;
	source = redirect_find(view->key.remote, slot->self.network);
	if (!source || source->owner == slot->self.owner ||
	    !endpoint_pairs(source, &slot->self, view->key.protocol))
		return;
	suspect.seen = now;
	suspect.owner[DIRECT_LOW] = sender == DIRECT_LOW ? source->owner : slot->self.owner;
	suspect.owner[DIRECT_HIGH] = sender == DIRECT_LOW ? slot->self.owner : source->owner;
	bpf_map_update_elem(&direct_flows, &view->direct, &suspect, BPF_ANY);
}

/*
 * Notes the packet in the CPU's view, which the stack brought to the pod in slot number. Global, as
 * what follows: the verifier walks it once.
 */
__attribute__((noinline)) int redirect_delivered(__u32 number)
{
	const struct slot *slot = bpf_map_lookup_elem(&slots, &number);
	struct view *view = view_scratch();
	struct direct_flow *flow;
	enum direct_end sender;

	if (!slot || !view || !(view->flags & VIEW_PLAIN))
		return 0;
	if (view->key.protocol == IPPROTO_TCP && !(view->tcp_flags & TCP_SYN))
		return 0;
	sender = !redirect_key(view, slot->self.network);
	flow = bpf_map_lookup_elem(&direct_flows, &view->direct);
	if (flow && flow->owner[!sender] != slot->self.owner)
		flow = NULL;
	if (view->key.protocol != IPPROTO_TCP) {
		redirect_count(view, flow, slot, sender);
		return 0;
	}
	if (!flow)
		return 0;
	if (redirect_opens(view)) {
		/* also a translated one, which then differs from what was sent */
		flow->syn_delivered = flow->opener == sender ? view->sequence : ~flow->syn_sent;
	} else if (flow->opener != sender) {
		flow->answer_delivered = view->sequence;
	}
	flow->delivered[sender & 1] = 1;
	return 0;
}

/* Returns the way of the packet in view as far as it depends on its headers; sets view->routed. */
static __always_inline enum way redirect_frame(struct view *view, const struct endpoint *self)
{
	const struct endpoint *target = &view->target;

	if (view->datagram_len > target->mtu)
		return WAY_LONG;
	if (self->segment && self->segment == target->segment &&
	    !view_mac_differs(view->destination_mac, target->mac))
		return WAY_DIRECT;
	if (view_mac_differs(view->destination_mac, self->router_mac))
		return WAY_LINK;
	view->routed = true;
	return view->hops > 1 ? WAY_DIRECT : WAY_LAST_HOP;
}

/*
 * Returns the way (enum way) of the packet in the CPU's view, which the pod in slot number sends
 * and may send; for a direct one view->target, target_flags and routed say where to and how. What
 * goes by the stack is noted.
 */
__attribute__((noinline)) int redirect_way(__u32 number)
{
	const struct slot *slot = bpf_map_lookup_elem(&slots, &number);
	struct view *view = view_scratch();
	const struct endpoint *target;
	struct direct_flow *flow;
	const struct slot *other;
	enum direct_end end;
	__u64 now = 0;
	enum way way;
	__u8 protocol;

	if (!slot || !view || !(view->flags & VIEW_PLAIN))
		return WAY_SPECIAL;
	if (view->key.protocol != IPPROTO_TCP) {
		view->sent = view->key;
		if (slot->self.mode == POD_MODE_NATIVE)
			view->sent.protocol = 0; /* of no packet */
	}
	target = redirect_find(view->key.remote, slot->self.network);
	if (!target || target->slot == number)
		return WAY_STRANGER;
	view->target = *target;
	target = &view->target;
	other = bpf_map_lookup_elem(&slots, &target->slot);
	if (!other || other->owner != target->owner || !(other->flags & SLOT_REDIRECT))
		return WAY_STRANGER;
	view->target_flags = other->flags;
	protocol = view->key.protocol;
	if (!endpoint_pairs(&slot->self, target, protocol))
		return WAY_MODES;
	way = slot_programs(slot, SLOT_AFTER) ? WAY_PROGRAMS : redirect_frame(view, &slot->self);
	if (protocol != IPPROTO_TCP)
		now = clock_now();
	end = redirect_key(view, slot->self.network);
	flow = bpf_map_lookup_elem(&direct_flows, &view->direct);
	if (flow && (flow->owner[end & 1] != slot->self.owner ||
		     flow->owner[!end] != target->owner || !direct_live(flow, protocol, now)))
		flow = NULL;
	if (way == WAY_DIRECT && (!flow || !direct_known(flow, protocol) ||
				  (protocol == IPPROTO_TCP && (view->tcp_flags & TCP_SYN))))
		way = WAY_UNKNOWN;
	if (way != WAY_DIRECT) {
		redirect_sent(view, flow, slot, end, now);
		return way;
	}
	if (now - flow->seen > CLOCK_SECOND)
		flow->seen = now;
	return WAY_DIRECT;
}

/* Makes the CPU's view that of the pod which the packet goes to. */
static __always_inline void redirect_turn(struct view *view)
{
	redirect_word *local = (redirect_word *)view->key.local;
	redirect_word *remote = (redirect_word *)view->key.remote;
	__be16 port = view->key.local_port;

	for (int i = 0; i < 2; i++) {
		redirect_word word = local[i];

		local[i] = remote[i];
		remote[i] = word;
	}
	view->key.local_port = view->key.remote_port;
	view->key.remote_port = port;
}

/* What a router changes in a packet, at REWRITE_OFF and behind. */
struct redirect_ipv4 {
	__u8 ttl;
	__u8 protocol;
	__sum16 check; /* network byte order */
};

#define REDIRECT_IPV4_OFF (ETH_HLEN + 8)
#define REDIRECT_IPV6_OFF (ETH_HLEN + 7)

/* Sets the MACs of a frame that the node routes to the target in view. */
static __always_inline void redirect_macs(const struct view *view, struct ethhdr *eth)
{
	__builtin_memcpy(eth->h_dest, view->target.mac, 6);
	__builtin_memcpy(eth->h_source, view->target.router_mac, 6);
}

/* Takes one off the TTL, as ip_decrease_ttl() does (include/net/ip.h; RFC 1624). */
static __always_inline void redirect_hop(struct redirect_ipv4 *ip)
{
	__u32 check = ip->check + bpf_htons(0x0100);

	ip->check = check + (check >= 0xffff);
	ip->ttl--;
}

/*
 * Makes of a frame at XDP what the node, as a router, would make of it for the target in the CPU's
 * view. Returns false where its headers are out of reach.
 */
static __always_inline bool redirect_rewrite_xdp(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	const struct view *view = view_scratch();
	struct ethhdr *eth = data;

	if (!view || data + REDIRECT_IPV4_OFF + sizeof(struct redirect_ipv4) > data_end)
		return false;
	if (!view->routed)
		return true;
	redirect_macs(view, eth);
	if (eth->h_proto == bpf_htons(ETH_P_IP))
		redirect_hop(data + REDIRECT_IPV4_OFF);
	else
		--*(__u8 *)(data + REDIRECT_IPV6_OFF);
	return true;
}

/*
 * As redirect_rewrite_xdp() for a socket buffer. By helpers: a program that writes to packets in
 * place has each of them copied that is shared, as TCP's are (bpf_unclone_prologue() in
 * net/core/filter.c), also those it does not write to.
 */
static __always_inline bool redirect_rewrite_skb(struct __sk_buff *skb)
{
	const struct view *view = view_scratch();
	struct redirect_ipv4 ip;
	struct ethhdr eth;
	__u8 hops;

	if (!view)
		return false;
	/* on a bridge it is not for the host end's MAC, and the pod's stack would drop it for that */
	if (bpf_skb_change_type(skb, PACKET_HOST) < 0)
		return false;
	if (!view->routed)
		return true;
	if (bpf_skb_load_bytes(skb, REDIRECT_IPV4_OFF, &ip, sizeof(ip)) < 0)
		return false;
	eth.h_proto = bpf_htons(view->ethertype);
	redirect_macs(view, &eth);
	if (bpf_skb_store_bytes(skb, 0, &eth, sizeof(eth), 0) < 0)
		return false;
	if (view->ethertype == ETH_P_IP) {
		redirect_hop(&ip);
		return bpf_skb_store_bytes(skb, REDIRECT_IPV4_OFF, &ip, sizeof(ip),
					   BPF_F_RECOMPUTE_CSUM) == 0;
	}
	hops = view->hops - 1;
	return bpf_skb_store_bytes(skb, REDIRECT_IPV6_OFF, &hops, sizeof(hops),
				   BPF_F_RECOMPUTE_CSUM) == 0;
}
