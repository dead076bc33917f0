// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Programs that ask for what no kernel has, for tests: some can do without it. */
#include <stdbool.h>

#include <linux/bpf.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

char _license[] SEC("license") = "GPL";

/* What the kernel has of it is found in its BTF when the program is loaded (CO-RE). */
struct xdp_rxq_info {
	__u32 queue_index;
	__u32 no_such_member;
} __attribute__((preserve_access_index));

struct xdp_buff {
	struct xdp_rxq_info *rxq;
} __attribute__((preserve_access_index));

extern bool CONFIG_NO_SUCH_OPTION __kconfig;
extern int no_such_kfunc(struct xdp_md *ctx) __ksym;
extern int no_such_kfunc_either(struct xdp_md *ctx) __ksym __weak;
extern void no_such_symbol __ksym;

SEC("xdp")
int has_member(struct xdp_md *ctx)
{
	return bpf_core_field_exists(((struct xdp_rxq_info *)0)->queue_index) ? XDP_PASS : XDP_DROP;
}

SEC("xdp")
int use_member(struct xdp_md *ctx)
{
	struct xdp_buff *xdp = (void *)ctx;

	return BPF_CORE_READ(xdp, rxq, no_such_member) ? XDP_PASS : XDP_DROP;
}

SEC("xdp")
int use_option(struct xdp_md *ctx)
{
	return CONFIG_NO_SUCH_OPTION ? XDP_DROP : XDP_PASS;
}

SEC("xdp")
int use_kfunc(struct xdp_md *ctx)
{
	return no_such_kfunc(ctx);
}

SEC("xdp")
int use_weak_kfunc(struct xdp_md *ctx)
{
	return no_such_kfunc_either ? no_such_kfunc_either(ctx) : XDP_PASS;
}

SEC("xdp")
int use_symbol(struct xdp_md *ctx)
{
	return (unsigned long)&no_such_symbol & 1 ? XDP_DROP : XDP_PASS;
}
