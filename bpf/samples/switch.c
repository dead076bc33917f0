//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Sends frames to the interface that a table has for their destination MAC, and all others to the
 * stack. The tables are one for the node: whoever runs this program shares them.
 *
 * In native mode the plugin has the pod's own sockets finish their checksums, which would else be
 * lost on the way. The target's end must poll: the plugin sees to that in pods that run programs or
 * have "redirect"; another target needs GRO on, or XDP, at its own end.
 */
#include "lib/headers.h"
#include "lib/length.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define MAX_PORTS 256

struct mac {
	__u8 bytes[ETH_ALEN]; /* as in the frame */
};

/* Where a MAC is. */
struct mac_port {
	__u32 port; /* index into mac_ports, host byte order */
	/*
	 * Bytes of the longest frame that the interface takes, from the Ethernet header on: its MTU
	 * and 14, or 18 where frames with a tag are to have the whole MTU; host byte order.
	 */
	__u32 max_length;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct mac);
	__type(value, struct mac_port);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} mac_table SEC(".maps");

/*
 * The interfaces, by their index. The kernel takes one out when it goes. A map of devices by
 * key_size and value_size loads in 1 ms, by types in 20 ms (kernel 6.18).
 */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, MAX_PORTS);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} mac_ports SEC(".maps");

SEC("xdp.frags")
int xdp_redirect_mac(struct xdp_md *ctx)
{
	struct cursor c = cursor_begin(ctx);
	const struct mac_port *to;
	struct ethhdr *eth;
	struct mac mac;

	eth = cursor_take(&c, sizeof(*eth));
	/* what is for many goes to the bridge, which knows how many */
	if (!eth || (eth->h_dest[0] & 1))
		return XDP_PASS;
	__builtin_memcpy(mac.bytes, eth->h_dest, sizeof(mac.bytes));
	to = bpf_map_lookup_elem(&mac_table, &mac);
	/*
	 * In generic mode frames are not yet cut into segments, and the kernel drops those that are
	 * too long for the target (xdp_ok_fwd_dev() in include/linux/filter.h): the stack can cut
	 * them.
	 */
	if (!to || frame_length(ctx) > to->max_length)
		return XDP_PASS;
	/* XDP_PASS where there is no such interface any more */
	return bpf_redirect_map(&mac_ports, to->port, XDP_PASS);
}
