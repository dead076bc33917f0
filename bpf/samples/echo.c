//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Answers echo requests (ping) of the pod on the spot, whatever address they are for: every address
 * looks alive. The request is turned into the reply in place and sent back out of the interface
 * that it came in by (XDP_TX).
 */
#include "lib/addresses.h"
#include "lib/checksum.h"
#include "lib/headers.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* What replies start with, as those of Linux do. */
#define REPLY_HOP_LIMIT 64

/* Types of messages (RFC 792; RFC 4443, 4). */
#define ICMP_REPLY     0
#define ICMP_REQUEST   8
#define ICMPV6_REQUEST 128
#define ICMPV6_REPLY   129

/* An echo request or reply, of ICMP and of ICMPv6. */
struct echo {
	__u8 type;
	__u8 code;
	__sum16 checksum; /* over the message; ICMPv6: and over the addresses */
	__be16 id;
	__be16 sequence;
};

static __always_inline void swap_macs(struct ethhdr *eth)
{
	__u8 mac[ETH_ALEN];

	__builtin_memcpy(mac, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, mac, ETH_ALEN);
}

/* Makes a message of another type, and its checksum right: type and code are one 16-bit word. */
static __always_inline void set_type(struct echo *icmp, __u8 type)
{
	__be16 from = bpf_htons(icmp->type << 8 | icmp->code);

	icmp->type = type;
	icmp->checksum = checksum_replace(icmp->checksum, from, bpf_htons(type << 8 | icmp->code));
}

static __always_inline bool answer_ipv4(struct iphdr *ip, struct echo *icmp)
{
	__be32 address = ip->saddr;
	/* TTL and protocol are one 16-bit word of the header */
	__be16 from = bpf_htons(ip->ttl << 8 | ip->protocol);
	__be16 to = bpf_htons(REPLY_HOP_LIMIT << 8 | ip->protocol);

	if (icmp->type != ICMP_REQUEST || icmp->code != 0)
		return false;
	/* others must not be answered, or answered from (RFC 1122, 3.2.2.6) */
	if (!ipv4_is_host(ip->saddr) || !ipv4_is_host(ip->daddr))
		return false;
	/* what only changes its place does not change the sum */
	ip->saddr = ip->daddr;
	ip->daddr = address;
	ip->ttl = REPLY_HOP_LIMIT;
	ip->check = checksum_replace(ip->check, from, to);
	set_type(icmp, ICMP_REPLY);
	/*
	 * A reply of nothing but zeroes has this checksum, and not 0, which comes out here. Where 0
	 * would be right this one is as well: both are zero in one's complement.
	 */
	if (icmp->checksum == 0)
		icmp->checksum = 0xffff;
	return true;
}

static __always_inline bool answer_ipv6(struct ipv6hdr *ip, struct echo *icmp)
{
	struct in6_addr address = ip->saddr;

	if (icmp->type != ICMPV6_REQUEST || icmp->code != 0)
		return false;
	if (!ipv6_is_host(&ip->saddr) || !ipv6_is_host(&ip->daddr))
		return false;
	ip->saddr = ip->daddr;
	ip->daddr = address;
	ip->hop_limit = REPLY_HOP_LIMIT;
	set_type(icmp, ICMPV6_REPLY);
	return true;
}

SEC("xdp.frags")
int xdp_icmp_echo(struct xdp_md *ctx)
{
	struct cursor c = cursor_begin(ctx);
	struct echo *icmp;
	struct ethhdr *eth;
	__be16 ethertype;
	struct ip ip;
	bool answered = false;

	eth = parse_ethernet(&c, &ethertype);
	/* nothing that is sent to many gets an answer */
	if (!eth || (eth->h_dest[0] & 1) || !parse_ip(&c, ethertype, &ip))
		return XDP_PASS;
	/*
	 * a reply must not take over options (RFC 1122, 3.2.2.6), and wants all fragments of the
	 * request
	 */
	if (ip.options || ip.fragment)
		return XDP_PASS;
	icmp = parse_l4(&c, &ip, sizeof(*icmp));
	if (!icmp)
		return XDP_PASS;
	if (ip.v4 && ip.protocol == IPPROTO_ICMP)
		answered = answer_ipv4(ip.v4, icmp);
	else if (ip.v6 && ip.protocol == IPPROTO_ICMPV6)
		answered = answer_ipv6(ip.v6, icmp);
	if (!answered)
		return XDP_PASS;
	swap_macs(eth);
	return XDP_TX;
}
