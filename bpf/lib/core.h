/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include "filter.h"
#include "packet.h"
#include "peers.h"
#include "pod.h"
#include "stats.h"
#include "verdict.h"
#include "view.h"

/*
 * The walk of one parsed packet, the same for every hook and direction: finds the pod whose host
 * end is ifindex, decides, counts. An interface that is no pod's passes everything uncounted: it
 * is on its way in or out.
 */
static __always_inline enum verdict core(struct packet *pkt, enum parse_result result,
					 __u32 ifindex, enum direction direction)
{
	struct slot *slot;
	__u32 number;

	slot = pod_slot(ifindex, &number);
	if (!slot)
		return VERDICT_PASS;
	stats_count(number, direction, TABLE_KIND, stats_kind(result, pkt), pkt);
	if (result == PARSE_OK) {
		stats_count(number, direction, TABLE_PROTOCOL, pkt->protocol, pkt);
		if (slot->flags & SLOT_PEERS)
			peers_count(number, direction, pkt);
	}
	if (slot->flags & SLOT_FILTER) {
		view_fill(pkt, result, direction);
		return filter(number, slot->flags, ifindex, direction);
	}
	stats_count(number, direction, TABLE_VERDICT, VERDICT_PASS, pkt);
	return VERDICT_PASS;
}
