/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include "ethernet.h"
#include "ipv4.h"
#include "ipv6.h"
#include "transport.h"
#include "verifier.h"

/*
 * Parses the headers of a packet, Ethernet to L4, into its second part. On anything but PARSE_OK
 * only family, ethertype and l3_off may be relied on.
 */
static __always_inline enum parse_result parse(struct packet *pkt)
{
	enum parse_result result;

	/* all of it: what a first try left behind would be one more state to the verifier */
	pkt->flags = 0;
	pkt->l4_protocol = 0;
	pkt->ethertype = 0;
	pkt->l3_off = 0;
	pkt->l3_end = 0;
	pkt->l4_off = 0;
	pkt->payload_off = 0;
	pkt->fragment_id = 0;
	pkt->family = FAMILY_OTHER;
	pkt->protocol = PROTOCOL_OTHER;
	result = ethernet_parse(pkt);
	if (result == PARSE_OK) {
		if (pkt->ethertype == ETH_P_IP)
			result = ipv4_parse(pkt);
		else if (pkt->ethertype == ETH_P_IPV6)
			result = ipv6_parse(pkt);
	}
	pkt->family = verifier_forget(pkt, pkt->family, 3);
	pkt->flags = verifier_forget(pkt, pkt->flags, 7);
	pkt->l4_off = verifier_forget(pkt, pkt->l4_off, 0x1fff);
	pkt->payload_off = verifier_forget(pkt, pkt->payload_off, 0x1fff);
	if (result == PARSE_OK && pkt->family != FAMILY_OTHER)
		result = transport_parse(pkt);
	pkt->ethertype = verifier_forget_all(pkt, pkt->ethertype);
	pkt->l4_protocol = verifier_forget_all(pkt, pkt->l4_protocol);
	pkt->fragment_id = verifier_forget_all(pkt, pkt->fragment_id);
	pkt->l3_end = verifier_forget_all(pkt, pkt->l3_end);
	pkt->l3_off = verifier_forget(pkt, pkt->l3_off, 0x1f);
	pkt->l4_off = verifier_forget(pkt, pkt->l4_off, 0x1fff);
	pkt->protocol = verifier_forget(pkt, pkt->protocol, 7);
	pkt->payload_off = verifier_forget(pkt, pkt->payload_off, 0x1fff);
	return verifier_forget(pkt, result, 3);
}
