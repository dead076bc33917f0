/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include "endpoint.h"

/*
 * What the control path notes of an attachment and of the node. No program reads it: it is here
 * so that Go and bpftool know the types. Numbers are in host byte order, addresses in network
 * byte order; strings end with a NUL.
 */

#define META_MAX_ADDRESSES 16

/* Values of pod_meta.flags. */
enum pod_flag {
	POD_EGRESS_CLSACT = 1 << 0,  /* egress is hooked by a clsact filter, not by a link */
	POD_INGRESS_CLSACT = 1 << 1, /* ingress is hooked by a clsact filter, not by a link */
	POD_MADE_CLSACT = 1 << 2,    /* the clsact qdisc is ours */
	POD_SET_GRO = 1 << 3,        /* we turned GRO on at the host end */
	POD_SET_QUEUES = 1 << 4,     /* we raised the host end's RX queues from host_rx_queues */
	POD_FOR_GENERIC =
		1 << 5, /* mode is tcx, but generic was asked for: see datapath.effectiveMode */
	POD_REDIRECT = 1 << 6, /* its packets are to go directly where they can */
	POD_UNFIT = 1 << 7,    /* with POD_REDIRECT: they could not when it was made */
	POD_BIG_TCP = 1 << 8,  /* we raised the limits of GSO and GRO: see big_tcp */
	POD_PROGRAMS = 1 << 9, /* user programs run on what it sends: XDP, or tc in mode tcx */
};

struct pod_address {
	__u8 address[16]; /* IPv4 as ::ffff:a.b.c.d */
	__u8 prefix_len;  /* bits, of the address in its own family */
	__u8 pad[7];
};

/* Limits of one end of the veth, bytes; see IFLA_GSO_MAX_SIZE and the others in linux/if_link.h. */
struct offload_limits {
	__u32 gso;
	__u32 gro;
	__u32 gso_ipv4;
	__u32 gro_ipv4;
};

/* What was changed for BIG TCP: see bigtcp.Sizes. */
struct big_tcp {
	struct offload_limits to;   /* limits below it were raised to it */
	struct offload_limits host; /* as they were */
	struct offload_limits pod;
};

struct pod_meta {
	__u32 version; /* of this struct: 1 */
	__u32 mode;    /* enum pod_mode */
	__u32 flags;   /* enum pod_flag */
	__u32 host_ifindex;
	__u32 pod_ifindex; /* in the pod's namespace */
	__u32 host_rx_queues;
	__u32 addresses_len;
	__u32 egress_program; /* IDs of the programs attached */
	__u32 ingress_program;
	__u32 pod_end_changes; /* what was changed at the pod end for native redirect: podend.Changes */
	__u64 created;         /* nanoseconds since 1970 */
	__u64 network_id;      /* as in struct endpoint_key */
	struct big_tcp big_tcp;
	__u64 owner; /* random, not 0: tells whose a slot is, whatever its ifindex was before */
	__u8 pod_mac[6];
	__u8 pad[2];
	struct pod_address addresses[META_MAX_ADDRESSES];
	__u8 container_id[256];
	__u8 ifname[16]; /* of the pod end */
	__u8 host_ifname[16];
	__u8 netns[512];
	__u8 network[256];
	__u8 pod_namespace[64];
	__u8 pod_name[256];
	__u8 pod_uid[64];
	__u8 plugin_version[64];
};

/* Of the node's programs and maps. */
struct node_meta {
	__u32 version;  /* of this struct: 1 */
	__u8 xdp_frags; /* whether the XDP programs are multi-buffer ones */
	__u8 pad[3];
	__u64 netns;   /* inode of the network namespace whose interfaces the ifindexes name */
	__u64 created; /* nanoseconds since 1970 */
	__u8 plugin_version[64];
};

/* Per pod. Pinned for the pod. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct pod_meta);
} meta SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct node_meta);
} node_info SEC(".maps");
