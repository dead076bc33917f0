//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Rewrites destination ports of TCP and UDP by a table. It is one way: who answers does so from the
 * new port, and is to be known by that.
 */
#include "lib/checksum.h"
#include "lib/headers.h"

#include <linux/tcp.h>
#include <linux/udp.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct port {
	__be16 port;   /* destination, network byte order */
	__u8 protocol; /* IPPROTO_TCP or IPPROTO_UDP */
	__u8 pad;      /* 0: keys are compared byte by byte */
};

struct port_rewrite {
	__be16 port; /* new destination, network byte order */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct port);
	__type(value, struct port_rewrite);
} port_rewrites SEC(".maps");

/*
 * Returns what the pseudo-header of TCP and UDP adds to their checksum: addresses, protocol and
 * length (RFC 9293, 3.1; RFC 8200, 8.1).
 */
static __always_inline __u16 pseudo_header(const struct ip *ip)
{
	__u32 sum = bpf_htons(ip->protocol) + bpf_htons(ip->l4_len);

	/* source and destination are next to each other */
	if (ip->v6)
		sum = bpf_csum_diff(NULL, 0, (__be32 *)&ip->v6->saddr, 32, sum);
	else if (ip->v4)
		sum = bpf_csum_diff(NULL, 0, &ip->v4->saddr, 8, sum);
	return checksum_fold(sum);
}

/*
 * Whether a checksum is left to be finished. The stack of a pod leaves that to the device, and veth
 * to whoever gets the packet: until then the field holds the sum of the pseudo-header
 * (CHECKSUM_PARTIAL in include/linux/skbuff.h), and the port goes in when the checksum is finished.
 * XDP is not told, but can look. A finished checksum has the same value once in 65,536 packets:
 * such a packet leaves with a wrong one, and the receiver drops it. So it does with a
 * retransmission that is the same byte for byte; TCP's differ by their timestamps, where these are
 * on.
 */
static __always_inline bool is_unfinished(const struct ip *ip, __sum16 checksum)
{
	/* who cuts a datagram up finishes its checksum first; BIG TCP has yet to be cut up */
	if (ip->fragment)
		return false;
	return ip->big || checksum == pseudo_header(ip);
}

/* Puts to in the place of *port, and makes *checksum right. */
static __always_inline void rewrite(const struct ip *ip, __be16 *port, __sum16 *checksum, __be16 to)
{
	if (!is_unfinished(ip, *checksum))
		*checksum = checksum_replace(*checksum, *port, to);
	*port = to;
}

/* Returns the port (network byte order) that takes the place of port, or NULL for none. */
static __always_inline const struct port_rewrite *find(__u8 protocol, __be16 port)
{
	struct port key = {.port = port, .protocol = protocol};

	return bpf_map_lookup_elem(&port_rewrites, &key);
}

SEC("xdp.frags")
int xdp_rewrite_ports(struct xdp_md *ctx)
{
	struct cursor c = cursor_begin(ctx);
	const struct port_rewrite *to;
	__be16 ethertype;
	struct ip ip;

	if (!parse_ethernet(&c, &ethertype) || !parse_ip(&c, ethertype, &ip))
		return XDP_PASS;
	/* of a datagram in fragments the first has the ports and the checksum: it will do */
	if (ip.protocol == IPPROTO_TCP) {
		struct tcphdr *tcp = parse_l4(&c, &ip, sizeof(*tcp));

		if (!tcp)
			return XDP_PASS;
		to = find(IPPROTO_TCP, tcp->dest);
		if (to)
			rewrite(&ip, &tcp->dest, &tcp->check, to->port);
	} else if (ip.protocol == IPPROTO_UDP) {
		struct udphdr *udp = parse_l4(&c, &ip, sizeof(*udp));
		bool without;

		if (!udp)
			return XDP_PASS;
		/* RFC 768: 0 is no checksum, so what comes out as 0 is sent as ones */
		without = udp->check == 0;
		to = find(IPPROTO_UDP, udp->dest);
		if (to && without)
			udp->dest = to->port;
		else if (to)
			rewrite(&ip, &udp->dest, &udp->check, to->port);
		if (to && !without && udp->check == 0)
			udp->check = 0xffff;
	}
	return XDP_PASS;
}
