/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include <linux/types.h>

/*
 * Set by the loader before the programs are verified, constant from then on: the verifier
 * follows only the branch that they choose, so a helper that the kernel lacks may stand in the
 * other one.
 */

/* Whether bpf_xdp_get_buff_len() and multi-buffer XDP are there (kernel 5.18 and later). */
volatile const __u8 config_xdp_frags = 1;

/* Whether bpf_ktime_get_coarse_ns() is there (kernel 5.11 and later). */
volatile const __u8 config_coarse_clock = 1;

/* Whether pods' packets may go directly to each other: else all that has to do with it is left out. */
volatile const __u8 config_redirect = 0;

/*
 * Noted by the loader of the program that it loads, for people and for the next release: strings, which
 * bpftool prog shows as metadata, by the beginning of their names (tools/bpf/bpftool/prog.c, 5.10).
 */
#define METADATA_RELEASE_LEN 64
#define METADATA_DIGEST_LEN  64

/* The release that loaded it. */
volatile const char bpf_metadata_release[METADATA_RELEASE_LEN] = "";

/* What it loaded: datapath.digest(). */
volatile const char bpf_metadata_digest[METADATA_DIGEST_LEN] = "";
