//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Drops packets to the addresses of a list: 100,000 prefixes and more, of either family. XDP on a
 * pod sees what the pod sends, so destinations are looked at. The list comes from a file:
 *
 *     xdpctl programs load POD blocklist_v4 blocklist_v6 -f FILE
 */
#include "lib/headers.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Memory is taken by each prefix that there is, not for as many as there may be. */
#define MAX_PREFIXES (1 << 18)

/* As struct bpf_lpm_trie_key (include/uapi/linux/bpf.h). */
struct prefix_v4 {
	__u32 length;    /* 0 to 32, host byte order */
	__u8 address[4]; /* network byte order */
};

struct prefix_v6 {
	__u32 length;     /* 0 to 128, host byte order */
	__u8 address[16]; /* network byte order */
};

struct blocked {
	__u64 packets; /* that the prefix dropped */
};

/* A packet is dropped by the longest prefix that its destination is in. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, MAX_PREFIXES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix_v4);
	__type(value, struct blocked);
} blocklist_v4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, MAX_PREFIXES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix_v6);
	__type(value, struct blocked);
} blocklist_v6 SEC(".maps");

SEC("xdp.frags")
int xdp_blocklist(struct xdp_md *ctx)
{
	struct cursor c = cursor_begin(ctx);
	struct blocked *blocked = NULL;
	__be16 ethertype;
	struct ip ip;

	/* every fragment has the addresses */
	if (!parse_ethernet(&c, &ethertype) || !parse_ip(&c, ethertype, &ip))
		return XDP_PASS;
	if (ip.v6) {
		struct prefix_v6 key = {.length = 128};

		__builtin_memcpy(key.address, &ip.v6->daddr, sizeof(key.address));
		blocked = bpf_map_lookup_elem(&blocklist_v6, &key);
	} else if (ip.v4) {
		struct prefix_v4 key = {.length = 32};

		__builtin_memcpy(key.address, &ip.v4->daddr, sizeof(key.address));
		blocked = bpf_map_lookup_elem(&blocklist_v4, &key);
	}
	if (!blocked)
		return XDP_PASS;
	/* CPUs share the counter: there are no tries by CPU */
	__sync_fetch_and_add(&blocked->packets, 1);
	return XDP_DROP;
}
