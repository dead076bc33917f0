// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* A kernel option that may be missing, which libbpf takes and our loader does not, for a test. */
#include <stdbool.h>

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

extern bool CONFIG_NO_SUCH_OPTION __kconfig __weak;

SEC("xdp")
int only(struct xdp_md *ctx)
{
	return CONFIG_NO_SUCH_OPTION ? XDP_DROP : XDP_PASS;
}
