/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include "packet.h"
#include "verdict.h"

/* Why the filter dropped a packet. Less one, a key of TABLE_DROP. */
enum drop_reason {
	DROP_NONE,
	DROP_SPOOF,     /* a source that is not the pod's */
	DROP_RULE,      /* a rule says so */
	DROP_DEFAULT,   /* no rule matched, and the default says so */
	DROP_MALFORMED, /* truncated or malformed: it cannot be judged */
	DROP_FRAGMENT, /* of a datagram whose first fragment was not seen, and a rule wants its port */
	DROP_REASONS,
};

/* What decided about a packet. */
struct decision {
	__u64 now;    /* clock_now() */
	__u32 rule;   /* its number, if one matched */
	__u8 reason;  /* enum drop_reason */
	__u8 matched; /* whether a rule did */
	__u8 audit;   /* whether it passes only because the rule is an audit rule */
	__u8 pad;
};

/* drop_event.rule if no rule matched. */
#define DROP_NO_RULE (~0U)

/* What is told of a packet that was dropped, or would have been. Host byte order where not said. */
struct drop_event {
	__u64 time;       /* nanoseconds of clock_now() */
	__u32 ifindex;    /* of the pod's host end */
	__u32 rule;       /* number of the rule that decided, or DROP_NO_RULE */
	__u32 generation; /* of the policy */
	__u32 len;        /* bytes of the frame */
	__u8 source[16];  /* network byte order, IPv4 as ::ffff:a.b.c.d; 0 if it is not IP */
	__u8 destination[16];
	__be16 source_port;      /* network byte order; 0 of ICMP */
	__be16 destination_port; /* network byte order; of ICMP type << 8 | code */
	__u16 ethertype;
	__u8 protocol;  /* IPPROTO_* */
	__u8 direction; /* enum direction */
	__u8 reason;    /* enum drop_reason; DROP_RULE with audit: it passed */
	__u8 audit;
	__u8 pad[6];
};

/* For whoever reads; what does not fit is lost, which the counters are not. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 18);
} drop_events SEC(".maps");

/* Events that one CPU may tell in one window; the rest is only counted. */
#define DROP_WINDOW_SHIFT  27 /* 2^27 ns, 134 ms */
#define DROP_WINDOW_EVENTS 64

struct drop_window {
	__u64 window; /* clock_now() >> DROP_WINDOW_SHIFT */
	__u64 events;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct drop_window);
} drop_windows SEC(".maps");

/* Whether this CPU may tell one more event now. */
static __always_inline bool drop_may_tell(__u64 now)
{
	__u64 window = now >> DROP_WINDOW_SHIFT;
	struct drop_window *state;
	__u32 zero = 0;

	state = bpf_map_lookup_elem(&drop_windows, &zero);
	if (!state)
		return false;
	if (state->window != window) {
		state->window = window;
		state->events = 0;
	}
	return state->events++ < DROP_WINDOW_EVENTS;
}
