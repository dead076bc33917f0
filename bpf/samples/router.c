//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Routes packets by the node's routing table and neighbours, without its stack. Whatever is not a
 * plain case goes to the stack, which does it right: an expired TTL, options, a packet that is too
 * long, a neighbour that is not known yet, a route that refuses, an address that no host can have.
 *
 * Sources are checked as by rp_filter=1, whatever rp_filter says: what comes in by another
 * interface than the one that leads to its source, or from an address of the node, goes to the
 * stack, which forwards or drops it by its own settings, and logs it (log_martians). Not checked is
 * whether a source is its sender's own where a route leads to more than one: that is the filter's
 * (antiSpoof).
 *
 * It is for routed pods (the ptp plugin), and in native mode under the conditions that switch.c
 * names. Netfilter and conntrack do not see these packets.
 */
#include "lib/addresses.h"
#include "lib/checksum.h"
#include "lib/headers.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* As in include/linux/socket.h: they differ by operating system, not by architecture. */
#define AF_INET  2
#define AF_INET6 10

/* RFC 8200, 3: traffic class and flow label, host byte order. */
#define IPV6_FLOWINFO_MASK 0x0fffffff

/*
 * The interfaces that may be routed to, each under its own index, the same for all who run this
 * program. Others take no frames from XDP, or need what only the stack does (a bridge, a VLAN).
 */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP_HASH);
	__uint(max_entries, 1024);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} router_ports SEC(".maps");

/* Whether a packet from or to an address may be forwarded at all. */
static __always_inline bool ipv6_forwards(const struct in6_addr *address)
{
	/* not of the link (fe80::/10) either */
	return ipv6_is_host(address) && (bpf_ntohs(address->in6_u.u6_addr16[0]) & 0xffc0) != 0xfe80;
}

/* False for what the stack must route, or drop. */
static __always_inline bool is_plain(const struct ip *ip)
{
	if (ip->options || ip->big)
		return false;
	if (ip->v6)
		return ip->v6->hop_limit > 1 && ipv6_forwards(&ip->v6->saddr) &&
		       ipv6_forwards(&ip->v6->daddr);
	return ip->v4 && ip->v4->ttl > 1 && ipv4_is_host(ip->v4->saddr) &&
	       ipv4_is_host(ip->v4->daddr);
}

/* Returns what the routing table is asked for: the packet's way, or the way back to its source. */
static __always_inline struct bpf_fib_lookup question(__u32 ingress, const struct ip *ip, bool back)
{
	struct bpf_fib_lookup fib = {.ifindex = ingress, .l4_protocol = ip->protocol};

	if (ip->v6) {
		const struct ipv6hdr *v6 = ip->v6;

		fib.family = AF_INET6;
		fib.flowinfo = *(__be32 *)v6 & bpf_htonl(IPV6_FLOWINFO_MASK);
		__builtin_memcpy(fib.ipv6_src, back ? &v6->daddr : &v6->saddr,
				 sizeof(fib.ipv6_src));
		__builtin_memcpy(fib.ipv6_dst, back ? &v6->saddr : &v6->daddr,
				 sizeof(fib.ipv6_dst));
		/* the way back need not take as long a packet: 0 is not compared with the MTU */
		if (!back)
			fib.tot_len = sizeof(*v6) + bpf_ntohs(v6->payload_len);
	} else if (ip->v4) {
		const struct iphdr *v4 = ip->v4;

		fib.family = AF_INET;
		fib.tos = v4->tos;
		fib.ipv4_src = back ? v4->daddr : v4->saddr;
		fib.ipv4_dst = back ? v4->saddr : v4->daddr;
		if (!back)
			fib.tot_len = bpf_ntohs(v4->tot_len);
	}
	return fib;
}

/*
 * Whether a packet came from where its source is, and to this router. bpf_fib_lookup() asks no
 * question of the source, so it is asked for the way back. That has to lead out of the interface
 * that the packet came in by (as rp_filter=1 wants), and is no way at all where the source is an
 * address of the node or a broadcast address. The answer has the interface's own MAC, which the
 * frame must be for: others see frames as well, whose interface is in promiscuous mode.
 */
static __always_inline bool is_for_us(struct xdp_md *ctx, __u32 ingress, const struct ethhdr *eth,
				      const struct ip *ip)
{
	struct bpf_fib_lookup fib = question(ingress, ip, true);

	/* also not success: a source that is not among the neighbours yet */
	if (bpf_fib_lookup(ctx, &fib, sizeof(fib), 0) != BPF_FIB_LKUP_RET_SUCCESS)
		return false;
	return fib.ifindex == ingress && !__builtin_memcmp(eth->h_dest, fib.smac, ETH_ALEN);
}

/* One hop less to go. */
static __always_inline void age(const struct ip *ip)
{
	if (ip->v6) {
		ip->v6->hop_limit--;
	} else if (ip->v4) {
		/* TTL and protocol are one 16-bit word of the header */
		__be16 from = bpf_htons(ip->v4->ttl << 8 | ip->v4->protocol);

		ip->v4->ttl--;
		ip->v4->check = checksum_replace(ip->v4->check, from,
						 bpf_htons(ip->v4->ttl << 8 | ip->v4->protocol));
	}
}

SEC("xdp.frags")
int xdp_route(struct xdp_md *ctx)
{
	struct cursor c = cursor_begin(ctx);
	__u32 ingress = ctx->ingress_ifindex;
	struct bpf_fib_lookup fib;
	struct ethhdr *eth;
	__be16 ethertype;
	struct ip ip;

	eth = parse_ethernet(&c, &ethertype);
	/* a tagged frame is routed by a VLAN interface, which has an index of its own */
	if (!eth || is_tag(eth->h_proto) || !parse_ip(&c, ethertype, &ip))
		return XDP_PASS;
	if (!is_plain(&ip) || !is_for_us(ctx, ingress, eth, &ip))
		return XDP_PASS;
	fib = question(ingress, &ip, false);
	/* packets longer than the route's MTU are among what it does not answer with success */
	if (bpf_fib_lookup(ctx, &fib, sizeof(fib), 0) != BPF_FIB_LKUP_RET_SUCCESS)
		return XDP_PASS;
	/* back to where it came from: the stack tells the sender of a better way */
	if (fib.ifindex == ingress)
		return XDP_PASS;
	if (!bpf_map_lookup_elem(&router_ports, &fib.ifindex))
		return XDP_PASS;
	age(&ip);
	__builtin_memcpy(eth->h_dest, fib.dmac, ETH_ALEN);
	__builtin_memcpy(eth->h_source, fib.smac, ETH_ALEN);
	/* it is changed already: if the interface has gone meanwhile, so has the packet */
	return bpf_redirect_map(&router_ports, fib.ifindex, XDP_DROP);
}
