/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

/*
 * Returns the bytes of a frame. In native mode a long one lies in several buffers, of which data
 * and data_end are the first. Kernels before 5.18 have no such frames and no such helper: the
 * loader answers the question when it loads the program (CO-RE), and the verifier never sees the
 * other way.
 */
static __always_inline __u32 frame_length(struct xdp_md *ctx)
{
	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_xdp_get_buff_len))
		return bpf_xdp_get_buff_len(ctx);
	return ctx->data_end - ctx->data;
}
