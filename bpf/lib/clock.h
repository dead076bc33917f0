/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include "config.h"

/*
 * Returns nanoseconds since boot, without the time that the machine slept. The coarse clock
 * (kernel 5.11) is right to a tick and costs 22 ns where the other costs 48.
 */
static __always_inline __u64 clock_now(void)
{
	return config_coarse_clock ? bpf_ktime_get_coarse_ns() : bpf_ktime_get_ns();
}

#define CLOCK_SECOND 1000000000ULL
