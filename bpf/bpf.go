// Package bpf holds the packet path: its C source, and the Go that bpf2go generates from it.
package bpf

//go:generate go tool bpf2go -cc $BPF2GO_CC -strip $BPF2GO_STRIP -target bpfel,bpfeb -type slot -type slot_flag -type verdict -type direction -type protocol -type table -type kind -type datarec -type peer -type peer_counters -type pod_mode -type pod_flag -type pod_address -type pod_meta -type node_meta -type policy -type policy_direction -type policy_flag -type policy_action -type policy_prefix -type rule_counter -type flow_key -type flow -type flow_kind -type drop_reason -type drop_event -type drop_window -type endpoint -type endpoint_key -type endpoint_flag -type direct_key -type direct_flow -type direct_end -type way Datapath datapath.c -- -O2 -g -Wall -Wextra -Werror -mcpu=v3 -I.
