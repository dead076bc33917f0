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

/* Whether programs of the user run, for pods that have some. */
volatile const __u8 config_programs = 0;
