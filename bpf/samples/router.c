//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Routes packets by the node's routing table and neighbours, without its stack. Whatever is not a
 * plain case goes to the stack, which does it right: an expired TTL, options, a packet that is too
 * long, a neighbour that is not known yet, a route that refuses.
 *
 * It is for routed pods (the ptp plugin), and in native mode under the conditions that switch.c
 * names. Netfilter and conntrack do not see these packets.
 */
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

/*
 * Whether a packet may be forwarded at all. IPv4 addresses that may not are known to the routing
 * table.
 */
static __always_inline bool ipv6_forwards(const struct in6_addr *address)
{
	__u16 first = bpf_ntohs(address->in6_u.u6_addr16[0]);

	/* neither multicast (ff00::/8) nor of the link (fe80::/10) */
	return (first & 0xff00) != 0xff00 && (first & 0xffc0) != 0xfe80;
}

/* Fills in what the routing table is asked for. False for what the stack must route. */
static __always_inline bool question(struct bpf_fib_lookup *fib, const struct ip *ip)
{
	if (ip->options || ip->big)
		return false;
	if (ip->v6) {
		const struct ipv6hdr *v6 = ip->v6;

		if (v6->hop_limit <= 1 || !ipv6_forwards(&v6->saddr) || !ipv6_forwards(&v6->daddr))
			return false;
		fib->family = AF_INET6;
		fib->tot_len = sizeof(*v6) + bpf_ntohs(v6->payload_len);
		fib->flowinfo = *(__be32 *)v6 & bpf_htonl(IPV6_FLOWINFO_MASK);
		__builtin_memcpy(fib->ipv6_src, &v6->saddr, sizeof(fib->ipv6_src));
		__builtin_memcpy(fib->ipv6_dst, &v6->daddr, sizeof(fib->ipv6_dst));
	} else if (ip->v4) {
		const struct iphdr *v4 = ip->v4;

		if (v4->ttl <= 1)
			return false;
		fib->family = AF_INET;
		fib->tot_len = bpf_ntohs(v4->tot_len);
		fib->tos = v4->tos;
		fib->ipv4_src = v4->saddr;
		fib->ipv4_dst = v4->daddr;
	}
	fib->l4_protocol = ip->protocol;
	return true;
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
	struct bpf_fib_lookup fib = {};
	struct ethhdr *eth;
	__be16 ethertype;
	struct ip ip;

	eth = parse_ethernet(&c, &ethertype);
	/* a tagged frame is routed by a VLAN interface, which has an index of its own */
	if (!eth || (eth->h_dest[0] & 1) || is_tag(eth->h_proto) || !parse_ip(&c, ethertype, &ip))
		return XDP_PASS;
	if (!question(&fib, &ip))
		return XDP_PASS;
	fib.ifindex = ctx->ingress_ifindex;
	/* packets longer than the route's MTU are among what it does not answer with success */
	if (bpf_fib_lookup(ctx, &fib, sizeof(fib), 0) != BPF_FIB_LKUP_RET_SUCCESS)
		return XDP_PASS;
	/* back to where it came from: the stack tells the sender of a better way */
	if (fib.ifindex == ctx->ingress_ifindex)
		return XDP_PASS;
	if (!bpf_map_lookup_elem(&router_ports, &fib.ifindex))
		return XDP_PASS;
	age(&ip);
	__builtin_memcpy(eth->h_dest, fib.dmac, ETH_ALEN);
	__builtin_memcpy(eth->h_source, fib.smac, ETH_ALEN);
	/* it is changed already: if the interface has gone meanwhile, so has the packet */
	return bpf_redirect_map(&router_ports, fib.ifindex, XDP_DROP);
}
