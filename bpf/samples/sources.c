//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Counts packets and bytes by source address. All of them pass. The source addresses of what a pod
 * sends are the pod's own, or should be: more than those in the map are spoofed, or of a network
 * behind the pod.
 */
#include "lib/headers.h"
#include "lib/length.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct source {
	__u8 address[16]; /* network byte order; IPv4 as ::ffff:a.b.c.d (RFC 4291, 2.5.5.2) */
};

struct source_count {
	__u64 packets;
	__u64 bytes; /* of frames, from the Ethernet header on */
};

/*
 * Every CPU has counters of its own, so none waits for another: add them up when reading. When the
 * table is full the addresses that were not seen for longest make room.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_PERCPU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct source);
	__type(value, struct source_count);
} sources SEC(".maps");

SEC("xdp.frags")
int xdp_count_sources(struct xdp_md *ctx)
{
	struct cursor c = cursor_begin(ctx);
	struct source key = {};
	struct source_count *count, first = {};
	__be16 ethertype;
	struct ip ip;

	/* a fragment has addresses too, so each is counted */
	if (!parse_ethernet(&c, &ethertype) || !parse_ip(&c, ethertype, &ip))
		return XDP_PASS;
	if (ip.v6) {
		__builtin_memcpy(key.address, &ip.v6->saddr, sizeof(ip.v6->saddr));
	} else if (ip.v4) {
		key.address[10] = 0xff;
		key.address[11] = 0xff;
		__builtin_memcpy(&key.address[12], &ip.v4->saddr, sizeof(ip.v4->saddr));
	}

	count = bpf_map_lookup_elem(&sources, &key);
	if (!count) {
		/*
		 * fails where the table is full of what other CPUs use right now: not counted then
		 */
		bpf_map_update_elem(&sources, &key, &first, BPF_NOEXIST);
		count = bpf_map_lookup_elem(&sources, &key);
	}
	if (count) {
		count->packets++;
		count->bytes += frame_length(ctx);
	}
	return XDP_PASS;
}
