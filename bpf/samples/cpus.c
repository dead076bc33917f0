//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Spreads a pod's packets over CPUs, by flow: the stack then works on them there. A flow stays on
 * its CPU, so its packets stay in order. All that is not IP is worked on where it came in.
 *
 * In native mode packets lose their unfinished checksums on the way: the plugin has the pod's own
 * sockets finish them. In generic mode it takes kernel 5.15; before that the
 * kernel drops what is redirected to a CPU.
 */
#include "lib/headers.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* CPU numbers are below this; a kernel may refuse a map that is larger than its own limit. */
#define MAX_CPUS 64

/* The CPUs to spread over; none: everything stays where it is. */
struct cpu_list {
	__u32 count;          /* host byte order, at most MAX_CPUS */
	__u32 cpus[MAX_CPUS]; /* the first count of them are used; host byte order */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct cpu_list);
} cpu_list SEC(".maps");

/* The queues, by CPU number; a value is how many packets may wait there. */
struct {
	__uint(type, BPF_MAP_TYPE_CPUMAP);
	__uint(max_entries, MAX_CPUS);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} cpu_queues SEC(".maps");

/* Both ports of TCP, UDP and SCTP, as one word of any byte order. */
struct ports {
	__u32 both;
};

/* Mixes a word into a hash: multiplicative hashing, Knuth, The Art of Computer Programming, 6.4. */
static __always_inline __u32 mix(__u32 hash, __u32 word)
{
	hash = (hash ^ word) * 2654435761u;
	return hash ^ hash >> 15;
}

/* Returns a hash of what makes a flow. Reads the ports behind the cursor, where there are any. */
static __always_inline __u32 flow_hash(struct cursor *c, const struct ip *ip)
{
	__u32 hash = ip->protocol;

	if (ip->v6) {
		for (int i = 0; i < 4; i++) {
			hash = mix(hash, ip->v6->saddr.in6_u.u6_addr32[i]);
			hash = mix(hash, ip->v6->daddr.in6_u.u6_addr32[i]);
		}
	} else if (ip->v4) {
		hash = mix(hash, ip->v4->saddr);
		hash = mix(hash, ip->v4->daddr);
	}
	/* only the first fragment has ports: for all to go one way, no fragment's may count */
	if (!ip->fragment && (ip->protocol == IPPROTO_TCP || ip->protocol == IPPROTO_UDP ||
			      ip->protocol == IPPROTO_SCTP)) {
		const struct ports *ports = parse_l4(c, ip, sizeof(*ports));

		if (ports)
			hash = mix(hash, ports->both);
	}
	return hash;
}

SEC("xdp.frags")
int xdp_spread_cpus(struct xdp_md *ctx)
{
	__u32 first = 0, count, index;
	struct cursor c = cursor_begin(ctx);
	const struct cpu_list *list;
	__be16 ethertype;
	struct ip ip;

	list = bpf_map_lookup_elem(&cpu_list, &first);
	if (!list)
		return XDP_PASS;
	count = list->count;
	if (count == 0 || count > MAX_CPUS)
		return XDP_PASS;
	if (!parse_ethernet(&c, &ethertype) || !parse_ip(&c, ethertype, &ip))
		return XDP_PASS;
	/* by the upper bits of the hash: those below do not depend on all of what went in */
	index = (__u64)flow_hash(&c, &ip) * count >> 32;
	/*
	 * the compiler knows that it is below count, and the verifier does not: check it for the
	 * latter
	 */
	barrier_var(index);
	if (index >= MAX_CPUS)
		return XDP_PASS;
	/* XDP_PASS where the CPU has no queue */
	return bpf_redirect_map(&cpu_queues, list->cpus[index], XDP_PASS);
}
