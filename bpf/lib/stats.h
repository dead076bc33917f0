/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include "drop.h"
#include "packet.h"
#include "pod.h"
#include "verdict.h"

/*
 * The xdp-tutorial's record (struct datarec in its common/xdp_stats_kern_user.h). Counters are
 * per-CPU, and both hooks run with bottom halves off: plain additions lose nothing. Host byte order.
 */
struct datarec {
	__u64 packets; /* packets on a wire: a GSO packet counts as its segments where that is known */
	__u64 bytes; /* bytes of frames from the Ethernet header on, as they are in memory */
};

/*
 * Every table of counters has the shape that the tutorial gave the one by action, so that one
 * map of maps holds them all and one batch enters them: each update of a map of maps waits for
 * an RCU grace period (maybe_wait_bpf_programs() in kernel/bpf/syscall.c), 8 ms at 250 Hz.
 */
#define TABLE_RECORDS 5

/* The tables of a pod; those of ingress follow those of egress. */
enum table {
	TABLE_VERDICT,  /* key: enum verdict; egress: the pod's xdp_stats_map */
	TABLE_PROTOCOL, /* key: enum protocol */
	TABLE_KIND,     /* key: enum kind */
	TABLE_DROP,     /* key: enum drop_reason less one */
	TABLES,
};

/* What a packet is; one that is broken is counted here and by verdict, not by protocol. */
enum kind {
	KIND_IPV4 = FAMILY_IPV4,
	KIND_IPV6 = FAMILY_IPV6,
	KIND_OTHER = FAMILY_OTHER,
	KIND_TRUNCATED, /* PARSE_TRUNCATED, and headers out of reach */
	KIND_MALFORMED, /* PARSE_MALFORMED */
	KINDS,
};

_Static_assert(VERDICTS == TABLE_RECORDS && PROTOCOLS == TABLE_RECORDS && KINDS == TABLE_RECORDS &&
		       DROP_REASONS - 1 == TABLE_RECORDS,
	       "all tables have one shape");

/* Entries that a pod has in pod_tables. */
#define POD_TABLES (DIRECTIONS * TABLES)

/* One table of a pod. Pinned for the pod. */
struct table_map {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, TABLE_RECORDS);
	__type(key, __u32);
	__type(value, struct datarec);
} xdp_stats_map SEC(".maps");

/* The tables of all pods, by slot * POD_TABLES + direction * TABLES + enum table. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, MAX_PODS *POD_TABLES);
	__type(key, __u32);
	__array(values, struct table_map);
} pod_tables SEC(".maps");

/* Adds a packet to a record. */
static __always_inline void datarec_add(struct datarec *rec, const struct packet *pkt)
{
	rec->packets += pkt->packets;
	rec->bytes += pkt->len;
}

/* Counts a packet of the pod in slot under key in one of its tables. */
static __always_inline void stats_count(__u32 slot, enum direction direction, enum table table,
					__u32 key, const struct packet *pkt)
{
	__u32 index = slot * POD_TABLES + direction * TABLES + table;
	struct datarec *rec;
	void *map;

	map = bpf_map_lookup_elem(&pod_tables, &index);
	if (!map)
		return;
	rec = bpf_map_lookup_elem(map, &key);
	if (rec)
		datarec_add(rec, pkt);
}

/* Returns the key in TABLE_KIND of a packet that was parsed with result. */
static __always_inline enum kind stats_kind(enum parse_result result, const struct packet *pkt)
{
	switch (result) {
	case PARSE_OK:
		return (enum kind)pkt->family;
	case PARSE_MALFORMED:
		return KIND_MALFORMED;
	default:
		return KIND_TRUNCATED;
	}
}
