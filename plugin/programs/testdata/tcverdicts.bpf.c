// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* tc programs that say the same of every packet, and count it. make bench runs them. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>

#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* What ran, by CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} ran SEC(".maps");

static __always_inline void count(void)
{
	__u32 zero = 0;
	__u64 *packets = bpf_map_lookup_elem(&ran, &zero);

	if (packets)
		++*packets;
}

SEC("tc")
int tc_pass(struct __sk_buff *skb)
{
	count();
	return TC_ACT_UNSPEC;
}

SEC("tc")
int tc_drop(struct __sk_buff *skb)
{
	count();
	return TC_ACT_SHOT;
}
