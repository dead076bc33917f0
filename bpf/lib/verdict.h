/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include <linux/bpf.h>

/*
 * What the core decides about a packet. The values are those of enum xdp_action
 * (include/uapi/linux/bpf.h), because a verdict is also the key of the action counters,
 * whose layout the xdp-tutorial fixed.
 */
enum verdict {
	VERDICT_ABORTED = XDP_ABORTED,
	VERDICT_DROP = XDP_DROP,
	VERDICT_PASS = XDP_PASS,
	VERDICT_TX = XDP_TX,
	VERDICT_REDIRECT = XDP_REDIRECT,
	VERDICTS,
};

/* The way of a packet as its pod sees it. */
enum direction {
	DIRECTION_EGRESS,  /* from the pod: RX on the host end */
	DIRECTION_INGRESS, /* to the pod: TX on the host end */
	DIRECTIONS,
};
